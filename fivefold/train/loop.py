"""The training loop: rows in, steps out, phase by phase, until the tokens are spent.

It knows when to validate, to sample, to save and to log; what a step is stands in `step`, what is
learned in `losses`. Everything that the next step depends on is in `Progress` and the saved
tensors, so a run that was killed at any moment goes on bit for bit.

Several ranks run the same loop on the same global batches; `data_parallel` says who holds what. The
first rank alone looks, samples and records.
"""

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fivefold.data.loader import RowLoader
from fivefold.models.transformer import Transformer
from fivefold.stage import StageContext
from fivefold.train.balance import BalanceTracker
from fivefold.train.checkpoint import save_state
from fivefold.train.config import GradientConfig
from fivefold.train.data_parallel import Spreading, spread
from fivefold.train.losses import Objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.progress import (
    START,
    Origin,
    Progress,
    count_skipped,
    headline,
    record_step,
    remember_load,
)
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.step import train_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one context length."""

    until_tokens: int
    """Tokens of the stage at which the phase ends."""
    loader: RowLoader
    """Where rows come from."""
    rows_at: Callable[[int], int]
    """Rows of the step that begins at this many tokens."""
    microbatch_rows: int
    """Rows of one forward and backward."""
    prepare: Callable[[], None]
    """Fits the model to the phase, as a function of the phase alone."""
    validate: Callable[[], dict[str, float]]
    """Measures on held-out rows; `validation/bits_per_byte` and `validation/loss_nats` at least."""


@dataclass(frozen=True)
class Learner:
    """What is trained, how, and what is looked at on the way."""

    model: Transformer
    optimizer: HybridOptimizer
    objective: Objective
    staged: StagedLanguageLoss
    """The objective again, taken apart for the stages of a pipeline."""
    sample: Callable[[int, float], list[dict[str, str]]]
    """Given step and bits per byte, returns continuations for the report."""


def train(
    learner: Learner,
    phases: Sequence[Phase],
    config: GradientConfig,
    context: StageContext,
    states: Path,
    origin: Origin = START,
) -> Progress:
    """Train through all phases, resuming from the newest state in `states`.

    `origin` is where the record of a stage stands when this is not its first training.

    Raises:
        DivergenceError: more than `nonfinite_limit` steps in a row had a non-finite gradient.
        MismatchError: the saved state belongs to other data.
    """
    spreading = spread(learner.model, learner.optimizer, config, context.ranks, learner.staged)
    optimizer, saver = spreading.optimizer, spreading.saver
    objective = functools.partial(learner.objective, context=spreading.context)
    saved = spreading.load(states)
    progress = Progress() if saved is None else Progress.model_validate(saved)
    if progress.tokens >= phases[-1].until_tokens:
        spreading.end()
        return progress
    context.metrics.forget_after(origin.step + progress.step if saved or origin.step else -1)
    if saved is not None:
        logger.info("goes on at step %d, %d tokens", progress.step, progress.tokens)
    balance = BalanceTracker(spreading.holder)
    with context.track("training", config.total_tokens, "tokens") as bar:
        bar.advance(progress.tokens)
        for number, phase in enumerate(phases):
            if progress.tokens >= phase.until_tokens:
                continue
            phase.prepare()
            if progress.phase != number:
                progress.phase, progress.loader = number, None
            if progress.loader is not None:
                phase.loader.load_state_dict(progress.loader)
            # Where a stage trains on, the last look of the training before saw the same weights.
            if progress.step == 0 and origin.step == 0:
                _look(progress, learner, phase, config, context, origin, spreading)
            while progress.tokens < phase.until_tokens:
                begin, cpu_begin = time.perf_counter(), time.process_time()
                rows = phase.loader.next_rows(phase.rows_at(progress.tokens))
                result = train_step(
                    spreading.compute,
                    optimizer,
                    balance,
                    objective,
                    rows,
                    progress.tokens,
                    config,
                    microbatch_rows=phase.microbatch_rows,
                    sharding=spreading.sharding,
                )
                tokens = rows.ids[:, 1:].size
                progress.step += 1
                progress.tokens += tokens
                count_skipped(progress, result, config)
                remember_load(progress, result)
                timing = time.perf_counter() - begin, time.process_time() - cpu_begin
                record_step(progress, result, config, context, tokens, timing, origin)
                is_last = progress.tokens >= phase.until_tokens
                if progress.step % config.validation_steps == 0 or is_last:
                    _look(progress, learner, phase, config, context, origin, spreading)
                if progress.step % config.checkpoint_steps == 0 or is_last:
                    progress.loader = phase.loader.state_dict()
                    state = progress.model_dump()
                    save_state(states, progress.step, spreading.weights, optimizer, state, saver)
                spreading.step_done(progress.step)
                bar.advance(tokens, loss=headline(result))
    spreading.end()
    return progress


def _look(
    progress: Progress,
    learner: Learner,
    phase: Phase,
    config: GradientConfig,
    context: StageContext,
    origin: Origin,
    spreading: Spreading,
) -> None:
    """Validate, and take samples where another share of the training is done."""
    with spreading.one_looks() as is_looking:
        if is_looking:
            _look_alone(progress, learner, phase, config, context, origin)


def _look_alone(
    progress: Progress,
    learner: Learner,
    phase: Phase,
    config: GradientConfig,
    context: StageContext,
    origin: Origin,
) -> None:
    found = phase.validate()
    bits_per_byte = found["validation/bits_per_byte"]
    context.metrics.write(
        origin.step + progress.step,
        {"train/tokens": origin.tokens + progress.tokens, **found},
        shown=f"step {origin.step + progress.step}  validation "
        f"{found['validation/loss_nats']:.3f} nats/token  {bits_per_byte:.3f} bits/byte",
    )
    prompts = len(config.sample_prompts)
    taken = len(progress.samples) // prompts if prompts else config.sample_count
    due = progress.tokens / config.total_tokens * max(config.sample_count - 1, 1)
    if taken < config.sample_count and taken <= due:
        progress.samples += learner.sample(origin.step + progress.step, bits_per_byte)
