"""Supervised fine-tuning: the assistant's tokens of conversations as labels, all else as context.

Conversations become packed rows with a weight for each token (`data.conversation_rows`); the loss
is that of the other gradient stages with labels only where a weight is above zero, and MTP depths
are masked by the token that they predict. Every mean is over the learned tokens of the whole step,
so that neither packing nor microbatches move a gradient; indexers stay as they are (GLM-5 report,
sections 3.1 and 3.2).

Surprise: in the last step of `epochs` the batch may be smaller, for each source is passed over as
often as asked and not a row more.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fivefold.data.config import MixtureConfig, WeightPoint
from fivefold.data.conversation_rows import (
    open_conversation_rows,
    template_hash,
    write_conversation_rows,
)
from fivefold.data.loader import RowLoader, Rows, assemble_all
from fivefold.data.packed_source import PackedSource
from fivefold.errors import ConfigError, MismatchError
from fivefold.models.transformer import Transformer
from fivefold.parallel.context.across import ContextParallel
from fivefold.stage import StageContext
from fivefold.train.config import GradientConfig
from fivefold.train.evaluate import Examiner, record_final
from fivefold.train.loop import Learner, Phase, train
from fivefold.train.losses import LossParts, Objective, language_objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.outcome import write_outcome
from fivefold.train.pretrain import freeze_indexers
from fivefold.train.schedule import batch_rows
from fivefold.train.sft_config import SftConfig
from fivefold.train.sft_sample import choose_questions, make_answerer
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.start import start_from

logger = logging.getLogger(__name__)


def sft(config: SftConfig, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
    """Train `inputs["start"]` on `inputs["conversations"]`; writes `out/checkpoint`.

    Raises:
        MismatchError: the checkpoint has another tokenizer or chat template.
        ConfigError, CorruptFileError, MissingFileError: conversations that cannot be read, or of
            which nothing is left; a context that the model does not have.
    """
    tokens = config.conversations.context_tokens
    model, tokenizer = start_from(
        inputs["start"], inputs["tokenizer"], context, longest_tokens=tokens
    )
    if not config.accept_other_template:
        accepts = "Set `accept_other_template` to train it on Fivefold's format all the same"
        check_template(inputs["start"] / "checkpoint", fix=accepts)
    freeze_indexers(model)
    rows, given = out / "state" / "rows", inputs["conversations"]
    if context.ranks.is_first:
        write_conversation_rows(
            given, rows, out / "page", tokenizer, config.conversations, context.track
        )
    context.ranks.wait()
    sources = open_conversation_rows(rows, tokens, "train")
    heldout = assemble_all(open_conversation_rows(rows, tokens, "heldout"), tokenizer.pad_id)
    config, mixture = plan_epochs(config, sources)
    _log_sources(sources, mixture, config)
    questions = choose_questions(config, given, tokenizer, model)
    config = config.model_copy(update={"sample_prompts": tuple(q.shown for q in questions)})
    examiner = Examiner(model, heldout, tokenizer.token_bytes(), config, config.microbatch_rows)
    phase = Phase(
        until_tokens=config.total_tokens,
        loader=RowLoader(sources, pad_id=tokenizer.pad_id, seed=context.seed, mixture=mixture),
        rows_at=lambda seen: _rows_at(seen, config),
        microbatch_rows=config.microbatch_rows,
        prepare=lambda: None,
        validate=examiner.on_some_rows,
    )
    learner = Learner(
        model,
        HybridOptimizer(model.named_parameters(), model.config, config.optimizer),
        sft_objective(config),
        StagedLanguageLoss(model.config, config),
        make_answerer(model, tokenizer, questions, config, context.seed),
    )
    progress = train(learner, [phase], config, context, out / "state" / "training")
    if not context.ranks.is_first:
        return
    final = record_final(examiner, progress.step, progress.tokens, context.metrics)
    logger.info("held-out answers: %.3f nats a token", final.loss_nats)
    write_outcome(model, tokenizer, progress, out)


def sft_objective(config: GradientConfig) -> Objective:
    """Return the language loss on learned tokens; it also counts them."""
    language = language_objective(config)

    def objective(
        model: Transformer,
        part: Rows,
        whole: Rows,
        tokens_before: int,
        context: ContextParallel | None = None,
    ) -> LossParts:
        losses = language(model, part, whole, tokens_before, context)
        assert part.weight is not None, "rows of conversations have weights"
        learned = (part.weight > 0) & (part.positions > 0)
        # Ranks that share the rows' tokens add their counts up: the first one counts.
        is_counting = context is None or context.group.rank == 0
        count = torch.tensor(float(learned.sum()) * is_counting, device=losses.total.device)
        return losses._replace(measured={**losses.measured, "answer_tokens": count})

    return objective


def plan_epochs(
    config: SftConfig, sources: Sequence[PackedSource]
) -> tuple[SftConfig, MixtureConfig]:
    """Return the config with its end in tokens, and the mixture that leads there.

    Raises:
        ConfigError: `epochs` names an unknown source, or asks for no row at all.
    """
    if config.total_tokens:
        return config, config.mixture
    names = [source.name for source in sources]
    unknown = sorted(set(config.epochs) - set(names))
    if unknown:
        raise ConfigError(
            expected="`epochs` of sources with samples to train on",
            found=", ".join(unknown),
            fix=f"Choose among {', '.join(sorted(names))}",
        )
    wanted = {s.name: round(config.epochs.get(s.name, 1.0) * s.pack.rows) for s in sources}
    rows = sum(wanted.values())
    if not rows:
        raise ConfigError(
            expected="`epochs` that give at least one row",
            found=str(config.epochs),
            fix="Raise one of them",
        )
    weights = {name: (WeightPoint(weight=count),) for name, count in wanted.items()}
    total_tokens = rows * config.conversations.context_tokens
    return config.model_copy(update={"total_tokens": total_tokens}), MixtureConfig(weights=weights)


def check_template(checkpoint: Path, *, fix: str = "") -> None:
    """Refuse a checkpoint whose chat template is another than Fivefold's; none at all is fine.

    `fix` is the caller's own advice; without one, it is to fine-tune on Fivefold's format first.

    Raises:
        MismatchError: it is another.
    """
    path = checkpoint / "chat_template.jinja"
    if not path.is_file():
        return
    found = template_hash(path.read_text(encoding="utf-8"))
    first = (
        "Fine-tune it on Fivefold's format first, in a recipe whose stage `sft` has "
        "`accept_other_template`"
    )
    if found != template_hash():
        raise MismatchError(
            expected=f"a checkpoint with Fivefold's chat template ({template_hash()})",
            found=f"`{path}` with another ({found})",
            fix=f"{fix or first}; where the template renders the same text, as GLM-5's own does, "
            "put Fivefold's in its place",
        )


def _rows_at(seen: int, config: SftConfig) -> int:
    left = -(-(config.total_tokens - seen) // config.conversations.context_tokens)
    return min(batch_rows(seen, config, config.microbatch_rows), left)


def _log_sources(
    sources: Sequence[PackedSource], mixture: MixtureConfig, config: SftConfig
) -> None:
    for source in sources:
        points = mixture.weights.get(source.name)
        logger.info(
            "%s: %s rows%s, %.0f%% of their places filled",
            source.name,
            f"{source.pack.rows:,}",
            f", weight {points[0].weight:g}" if points else "",
            100 * source.pack.utilisation,
        )
    rows = -(-config.total_tokens // config.conversations.context_tokens)
    logger.info("%s rows of %d tokens", f"{rows:,}", config.conversations.context_tokens)
