"""Where a training run stands, and what each step leaves in the record.

`Progress` is all of the loop's own state; it is saved as JSON beside the tensors.
"""

from dataclasses import dataclass
from typing import Any

import pydantic

from fivefold.errors import DivergenceError
from fivefold.stage import StageContext
from fivefold.train.balance import max_violation
from fivefold.train.config import GradientConfig
from fivefold.train.step import StepResult

_LOAD_MEMORY = 0.95
"""Decay of the running mean of expert loads that the report shows."""


@dataclass(frozen=True)
class Origin:
    """Where the record of a stage stands when a training begins."""

    step: int
    tokens: int


START = Origin(0, 0)


class Progress(pydantic.BaseModel):
    """Where a training run stands; JSON beside the saved tensors."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    tokens: int = 0
    """Tokens trained on."""
    phase: int = 0
    """Number of the phase that the loader's place belongs to."""
    loader: dict[str, Any] | None = None
    """Place in that phase's data; None at its beginning."""
    skipped: int = 0
    """Steps skipped for a non-finite gradient."""
    skipped_in_row: int = 0
    """The same since the last good step."""
    samples: list[dict[str, str]] = []
    """Continuations along training: label, prompt, text."""
    expert_load: list[list[float]] = []
    """Running mean of each expert's share of its router's choices, a router."""


def count_skipped(progress: Progress, result: StepResult, config: GradientConfig) -> None:
    """Count a skipped step; raise DivergenceError beyond the limit."""
    progress.skipped += result.is_skipped
    progress.skipped_in_row = progress.skipped_in_row + 1 if result.is_skipped else 0
    if progress.skipped_in_row > config.nonfinite_limit:
        raise DivergenceError(
            expected=f"at most {config.nonfinite_limit} steps in a row with a non-finite gradient",
            found=f"{progress.skipped_in_row} up to step {progress.step}",
            fix="Lower `peak_lr`, look at `metrics.jsonl` before that step, or raise "
            "`nonfinite_limit`; the same command goes on from the last saved state",
        )


def remember_load(progress: Progress, result: StepResult) -> None:
    """Let the running mean of expert loads follow the step's."""
    shares = [(count / count.sum().clamp_min(1)).tolist() for count in result.expert_counts]
    if not progress.expert_load:
        progress.expert_load = shares
    progress.expert_load = [
        [_LOAD_MEMORY * old + (1 - _LOAD_MEMORY) * new for old, new in zip(*pair, strict=True)]
        for pair in zip(progress.expert_load, shares, strict=True)
    ]


def record_step(
    progress: Progress,
    result: StepResult,
    config: GradientConfig,
    context: StageContext,
    tokens: int,
    timing: tuple[float, float],
    origin: Origin,
) -> None:
    """Write the step's numbers, and a line for the console every `log_steps`."""
    wall_seconds, cpu_seconds = timing
    violations = [max_violation(count) for count in result.expert_counts]
    values: dict[str, float] = {
        **{f"train/{name}": value for name, value in result.measured.items()},
        "train/lr": result.learning_rate,
        **{f"train/{name}_grad_norm": norm for name, norm in result.gradient_norms.items()},
        "train/tokens": origin.tokens + progress.tokens,
        "train/batch_tokens": tokens,
        "train/tokens_per_second": tokens / wall_seconds,
        "train/cpu_seconds": cpu_seconds,
        "train/skipped_steps": progress.skipped,
    }
    if violations:
        values["train/max_violation_mean"] = sum(violations) / len(violations)
        values["train/max_violation_worst"] = max(violations)
    line = None
    if progress.step % config.log_steps == 0 or result.is_skipped:
        line = (
            f"step {origin.step + progress.step}  {progress.tokens / config.total_tokens:.0%}  "
            f"loss {headline(result)}  lr {result.learning_rate:.1e}  "
            f"{tokens / wall_seconds / 1e3:.1f}k tokens/s"
            + ("  SKIPPED: non-finite gradient" if result.is_skipped else "")
        )
    context.metrics.write(origin.step + progress.step, values, shown=line)


def headline(result: StepResult) -> str:
    """Return the first measured loss, which every objective puts first, for the console."""
    return f"{next(iter(result.measured.values())):.3f}"
