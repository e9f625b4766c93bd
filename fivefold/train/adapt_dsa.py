"""The adaptation to sparse attention, in two parts.

Warm-up: attention stays dense, everything but the indexers is frozen, and they learn its
distribution at a high rate. Sparse: each query attends to what its indexer selects, all weights
learn, the indexers from the attention on the selected keys. The checkpoint carries the real
`index_topk` from here on. Sources: GLM-5 report, section 2.1.1; DeepSeek-V3.2 report, section
2.1.1.

Surprise: the two losses never meet. The indexers' inputs are detached, so that the language loss
moves the backbone alone and the divergence the indexers alone; each group's gradient is clipped by
itself.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fivefold.artifact import write_json
from fivefold.data.corpus_page import mixture_page
from fivefold.data.loader import open_loader, read_heldout_rows
from fivefold.errors import ConfigError
from fivefold.models.transformer import Transformer
from fivefold.stage import OneProcess, StageContext
from fivefold.train.config import AdaptDsaConfig, GradientConfig
from fivefold.train.cost_curve import write_cost_curve
from fivefold.train.evaluate import (
    Examiner,
    Validation,
    measure_planted,
    probe_indexers,
    record_final,
)
from fivefold.train.loop import Learner, Phase, train
from fivefold.train.losses import Objective, language_objective, warm_up_objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.outcome import write_outcome
from fivefold.train.progress import START, Origin, Progress
from fivefold.train.sample import make_sampler
from fivefold.train.schedule import batch_rows
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.start import start_from

logger = logging.getLogger(__name__)


def adapt_dsa(
    config: AdaptDsaConfig, inputs: Mapping[str, Path], out: Path, context: StageContext
) -> None:
    """Adapt `inputs["start"]` on `inputs["tokens"]`; writes `out/checkpoint`.

    `inputs["control"]`, where given, is the stage that trained the same start on, dense, for as
    many tokens; the page compares the two.

    Raises:
        MismatchError, ConfigError: the checkpoint does not fit, has no indexer, or the context is
            no longer than `index_topk`.
    """
    model, tokenizer = start_from(
        inputs["start"], inputs["tokenizer"], context, longest_tokens=config.context_tokens
    )
    _check(config, model)
    model.set_index_topk(config.index_topk)
    tokens = inputs["tokens"]
    heldout = read_heldout_rows(tokens, config.context_tokens, tokenizer.pad_id)

    def train_part(
        part: GradientConfig,
        objective: Objective,
        staged: StagedLanguageLoss,
        states: Path,
        origin: Origin,
    ) -> tuple[Progress, Examiner]:
        examiner = Examiner(model, heldout, tokenizer.token_bytes(), part, part.microbatch_rows)
        planted = measure_planted(
            model, tokens, config.context_tokens, tokenizer.pad_id, part, part.microbatch_rows
        )
        loader = open_loader(
            tokens, config.context_tokens, seed=context.seed, mixture=config.mixture
        )
        phase = Phase(
            until_tokens=part.total_tokens,
            loader=loader,
            rows_at=lambda seen: batch_rows(seen, part, part.microbatch_rows),
            microbatch_rows=part.microbatch_rows,
            prepare=lambda: None,
            validate=lambda: {
                **examiner.on_some_rows(),
                **planted(),
                **probe_indexers(model, examiner.some, part.microbatch_rows),
                **mixture_page(out / "page", states.name, loader),
            },
        )
        learner = Learner(
            model,
            HybridOptimizer(model.named_parameters(), model.config, part.optimizer),
            objective,
            staged,
            make_sampler(model, tokenizer, part, context.seed),
        )
        return train(learner, [phase], part, context, states, origin), examiner

    logger.info("warm-up: the indexers learn from dense attention")
    _let_learn(model, indexers_only=True)
    staged = StagedLanguageLoss(model.config, config.warm_up, "warm_up")
    states = out / "state" / "warm_up"
    warm, _ = train_part(config.warm_up, warm_up_objective, staged, states, START)
    logger.info("sparse: everything learns on %d selected keys", config.index_topk)
    _let_learn(model, indexers_only=False)
    weight = config.index_loss_weight
    objective = language_objective(config.sparse, "sparse", weight)
    staged = StagedLanguageLoss(model.config, config.sparse, "sparse", weight)
    origin, states = Origin(warm.step, warm.tokens), out / "state" / "sparse"
    done, examiner = train_part(config.sparse, objective, staged, states, origin)
    if not context.ranks.is_first:
        return
    step, spent = origin.step + done.step, origin.tokens + done.tokens
    final = record_final(examiner, step, spent, context.metrics)
    planted = measure_planted(
        model,
        tokens,
        config.context_tokens,
        tokenizer.pad_id,
        config.sparse,
        config.sparse.microbatch_rows,
    )
    rows = [_table_row(f"sparse, {config.index_topk} keys a query", final, planted())]
    if "control" in inputs:
        rows.append(_measure_control(inputs["control"], examiner, config, inputs, context))
    _write_comparison(rows, out / "page")
    write_outcome(model, tokenizer, done, out)
    logger.info("measures what attention costs at %s tokens", list(config.cost_contexts))
    write_cost_curve(model.config, config.cost_contexts, context.device, out / "page")


def _measure_control(
    control: Path,
    sparse_examiner: Examiner,
    config: AdaptDsaConfig,
    inputs: Mapping[str, Path],
    context: StageContext,
) -> list[str | float]:
    """Score the dense model that was trained on for as many tokens, on the same rows."""
    # One rank looks, and needs the whole model.
    alone = replace(context, ranks=OneProcess())
    model, tokenizer = start_from(
        control, inputs["tokenizer"], alone, longest_tokens=config.context_tokens
    )
    part = config.sparse
    examiner = Examiner(
        model, sparse_examiner.all, tokenizer.token_bytes(), part, part.microbatch_rows
    )
    planted = measure_planted(
        model,
        inputs["tokens"],
        config.context_tokens,
        tokenizer.pad_id,
        part,
        part.microbatch_rows,
    )
    return _table_row("dense, trained on as long", examiner.on_all_rows(), planted())


def _table_row(name: str, found: Validation, planted: Mapping[str, float]) -> list[str | float]:
    facts = planted.get("validation/planted_loss_nats")
    row: list[str | float] = [name, round(found.loss_nats, 4), round(found.bits_per_byte, 4)]
    return [*row, "-" if facts is None else round(facts, 4)]


def _write_comparison(rows: list[list[str | float]], page: Path) -> None:
    block = {
        "kind": "table",
        "title": "Sparse against dense, at the full context",
        "note": "All held-out rows; planted facts: only the tokens of answers count.",
        "columns": ["model", "nats a token", "bits a byte", "planted facts, nats"],
        "rows": rows,
    }
    write_json(page / "05_sparse_against_dense.json", block)


def _let_learn(model: Transformer, *, indexers_only: bool) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not indexers_only or ".indexer." in name)


def _check(config: AdaptDsaConfig, model: Transformer) -> None:
    if not model.config.has_indexer:
        raise ConfigError(
            expected="a checkpoint with an indexer (`index_n_heads`)",
            found=f"a `{model.config.model_type}` without one",
            fix="Pre-train with `pretrain.model.index_n_heads` set",
        )
