"""The training loop: rows in, steps out, until the tokens are spent.

It knows when to validate, to sample, to save and to log; what a step is stands in `step`.
Everything that the next step depends on is in `Progress` and the saved tensors, so a run that was
killed at any moment goes on bit for bit.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from fivefold.data.loader import RowLoader
from fivefold.errors import DivergenceError
from fivefold.models.transformer import Transformer
from fivefold.stage import StageContext
from fivefold.train.balance import BalanceTracker, max_violation
from fivefold.train.checkpoint import load_state, save_state
from fivefold.train.config import PretrainConfig
from fivefold.train.evaluate import Validation
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.schedule import batch_rows
from fivefold.train.step import StepResult, train_step

logger = logging.getLogger(__name__)

_LOAD_MEMORY = 0.95
"""Decay of the running mean of expert loads that the report shows."""


class Progress(pydantic.BaseModel):
    """Where a training run stands; JSON beside the saved tensors."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    tokens: int = 0
    """Tokens trained on."""
    skipped: int = 0
    """Steps skipped for a non-finite gradient."""
    skipped_in_row: int = 0
    """The same since the last good step."""
    loader: dict[str, Any] = {}
    """Place in the data."""
    samples: list[dict[str, str]] = []
    """Continuations along training: label, prompt, text."""
    expert_load: list[list[float]] = []
    """Running mean of each expert's share of its router's choices, a router."""


def train(
    model: Transformer,
    optimizer: HybridOptimizer,
    loader: RowLoader,
    config: PretrainConfig,
    context: StageContext,
    out: Path,
    *,
    validate: Callable[[], Validation],
    sample: Callable[[int, float], list[dict[str, str]]],
) -> Progress:
    """Train until `config.total_tokens`, resuming from `out/state`.

    `validate` measures on a part of the held-out rows; `sample` is given step and bits per byte and
    returns continuations for the report.

    Raises:
        DivergenceError: more than `nonfinite_limit` steps in a row had a non-finite gradient.
        MismatchError: the saved state belongs to other data.
    """
    states = out / "state"
    saved = load_state(states, model, optimizer)
    progress = Progress() if saved is None else Progress.model_validate(saved)
    if saved is not None:
        loader.load_state_dict(progress.loader)
        context.metrics.forget_after(progress.step)
        logger.info("goes on at step %d, %d tokens", progress.step, progress.tokens)
    else:
        context.metrics.forget_after(-1)
        _look(progress, config, context, validate, sample)
    balance = BalanceTracker(model)
    with context.track("training", config.total_tokens, "tokens") as bar:
        bar.advance(progress.tokens)
        while progress.tokens < config.total_tokens:
            begin, cpu_begin = time.perf_counter(), time.process_time()
            size = batch_rows(progress.tokens, config, config.microbatch_rows)
            rows = loader.next_rows(size)
            result = train_step(model, optimizer, balance, rows, progress.tokens, config)
            tokens = size * loader.context_tokens
            progress.step += 1
            progress.tokens += tokens
            _count_skipped(progress, result, config)
            _remember_load(progress, result)
            seconds = time.perf_counter() - begin
            _record(progress, result, config, context, tokens, seconds, cpu_begin)
            is_last = progress.tokens >= config.total_tokens
            if progress.step % config.validation_steps == 0 or is_last:
                _look(progress, config, context, validate, sample)
            if progress.step % config.checkpoint_steps == 0 or is_last:
                progress.loader = loader.state_dict()
                save_state(states, progress.step, model, optimizer, progress.model_dump())
            bar.advance(tokens, loss=f"{result.depth_nats[0]:.3f}")
    return progress


def _look(
    progress: Progress,
    config: PretrainConfig,
    context: StageContext,
    validate: Callable[[], Validation],
    sample: Callable[[int, float], list[dict[str, str]]],
) -> None:
    """Validate, and take samples where another share of the training is done."""
    found = validate()
    context.metrics.write(
        progress.step,
        {
            "train/tokens": progress.tokens,
            "validation/loss_nats": found.loss_nats,
            "validation/bits_per_byte": found.bits_per_byte,
        },
        shown=f"step {progress.step}  validation {found.loss_nats:.3f} nats/token  "
        f"{found.bits_per_byte:.3f} bits/byte",
    )
    prompts = len(config.sample_prompts)
    taken = len(progress.samples) // prompts if prompts else config.sample_count
    due = progress.tokens / config.total_tokens * max(config.sample_count - 1, 1)
    if taken < config.sample_count and taken <= due:
        progress.samples += sample(progress.step, found.bits_per_byte)


def _count_skipped(progress: Progress, result: StepResult, config: PretrainConfig) -> None:
    progress.skipped += result.is_skipped
    progress.skipped_in_row = progress.skipped_in_row + 1 if result.is_skipped else 0
    if progress.skipped_in_row > config.nonfinite_limit:
        raise DivergenceError(
            expected=f"at most {config.nonfinite_limit} steps in a row with a non-finite gradient",
            found=f"{progress.skipped_in_row} up to step {progress.step}",
            fix="Lower `peak_lr`, look at `metrics.jsonl` before that step, or raise "
            "`nonfinite_limit`; the same command goes on from the last saved state",
        )


def _remember_load(progress: Progress, result: StepResult) -> None:
    shares = [(count / count.sum().clamp_min(1)).tolist() for count in result.expert_counts]
    if not progress.expert_load:
        progress.expert_load = shares
    progress.expert_load = [
        [_LOAD_MEMORY * old + (1 - _LOAD_MEMORY) * new for old, new in zip(*pair, strict=True)]
        for pair in zip(progress.expert_load, shares, strict=True)
    ]


def _record(
    progress: Progress,
    result: StepResult,
    config: PretrainConfig,
    context: StageContext,
    tokens: int,
    seconds: float,
    cpu_begin: float,
) -> None:
    violations = [max_violation(count) for count in result.expert_counts]
    values: dict[str, float] = {
        "train/loss_nats": result.depth_nats[0],
        **{f"train/mtp{k}_loss_nats": nats for k, nats in enumerate(result.depth_nats) if k},
        "train/balance_loss": result.balance,
        "train/lr": result.learning_rate,
        **{f"train/{name}_grad_norm": norm for name, norm in result.gradient_norms.items()},
        "train/tokens": progress.tokens,
        "train/batch_tokens": tokens,
        "train/tokens_per_second": tokens / seconds,
        "train/cpu_seconds": time.process_time() - cpu_begin,
        "train/skipped_steps": progress.skipped,
    }
    if violations:
        values["train/max_violation_mean"] = sum(violations) / len(violations)
        values["train/max_violation_worst"] = max(violations)
    line = None
    if progress.step % config.log_steps == 0 or result.is_skipped:
        norm = result.gradient_norms.get("backbone", 0.0)
        line = (
            f"step {progress.step}  {progress.tokens / config.total_tokens:.0%}  "
            f"loss {result.depth_nats[0]:.3f} nats/token  grad_norm {norm:.2f}  "
            f"lr {result.learning_rate:.1e}  {tokens / seconds / 1e3:.1f}k tokens/s"
            + ("  SKIPPED: non-finite gradient" if result.is_skipped else "")
        )
    context.metrics.write(progress.step, values, shown=line)
