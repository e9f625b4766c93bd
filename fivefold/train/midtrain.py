"""The mid-training stage: the same loss on longer contexts, phase by phase.

Each phase has its context, rotary base and mixture; the learning rate falls linearly over all of
them (GLM-5 report, section 2.4: 4e-5 -> 1e-5 over 32K, 128K and 202,752 tokens of context). The
loss on planted facts tells whether the longer context is used.
"""

from collections.abc import Mapping
from pathlib import Path

from fivefold.data.corpus_page import mixture_page
from fivefold.data.loader import open_loader, read_heldout_rows
from fivefold.models.transformer import Transformer
from fivefold.stage import StageContext
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.config import MidtrainConfig, PhaseConfig
from fivefold.train.evaluate import Examiner, measure_planted, record_final
from fivefold.train.loop import Learner, Phase, train
from fivefold.train.losses import language_objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.outcome import write_outcome
from fivefold.train.pretrain import freeze_indexers
from fivefold.train.sample import make_sampler
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.start import start_from


def midtrain(
    config: MidtrainConfig, inputs: Mapping[str, Path], out: Path, context: StageContext
) -> None:
    """Train `inputs["start"]` further on `inputs["tokens"]`; writes `out/checkpoint`.

    Raises:
        MismatchError, ConfigError: the checkpoint does not fit the tokens or the contexts.
    """
    longest = max(phase.context_tokens for phase in config.phases)
    model, tokenizer = start_from(
        inputs["start"], inputs["tokenizer"], context, longest_tokens=longest
    )
    freeze_indexers(model)
    phases, spent = [], 0.0
    for number, phase in enumerate(config.phases):
        spent += phase.share
        is_last = number == len(config.phases) - 1
        until = config.total_tokens if is_last else round(spent * config.total_tokens)
        phases.append(
            _make_phase(
                phase, until, model, tokenizer, config, inputs, context, out / "page", number
            )
        )
    learner = Learner(
        model,
        HybridOptimizer(model.named_parameters(), model.config, config.optimizer),
        language_objective(config),
        StagedLanguageLoss(model.config, config),
        make_sampler(model, tokenizer, config, context.seed),
    )
    progress = train(learner, phases, config, context, out / "state")
    if not context.ranks.is_first:
        return
    last = config.phases[-1]
    rows = read_heldout_rows(inputs["tokens"], last.context_tokens, tokenizer.pad_id)
    examiner = Examiner(model, rows, tokenizer.token_bytes(), config, last.microbatch_rows)
    record_final(examiner, progress.step, progress.tokens, context.metrics)
    write_outcome(model, tokenizer, progress, out)


def _make_phase(
    phase: PhaseConfig,
    until_tokens: int,
    model: Transformer,
    tokenizer: Tokenizer,
    config: MidtrainConfig,
    inputs: Mapping[str, Path],
    context: StageContext,
    page: Path,
    number: int,
) -> Phase:
    tokens = inputs["tokens"]
    rows = read_heldout_rows(tokens, phase.context_tokens, tokenizer.pad_id)
    examiner = Examiner(model, rows, tokenizer.token_bytes(), config, phase.microbatch_rows)
    planted = measure_planted(
        model, tokens, phase.context_tokens, tokenizer.pad_id, config, phase.microbatch_rows
    )
    loader = open_loader(tokens, phase.context_tokens, seed=context.seed, mixture=phase.mixture)
    return Phase(
        until_tokens=until_tokens,
        loader=loader,
        rows_at=lambda _: phase.batch_rows,
        microbatch_rows=phase.microbatch_rows,
        prepare=lambda: model.set_rope_theta(phase.rope_theta),
        validate=lambda: {
            **examiner.on_some_rows(),
            **planted(),
            **mixture_page(page, str(number), loader),
        },
    )
