"""Where the loop stands, and what each batch leaves in the record.

`Progress` is all of the loop's own state; it is saved as JSON beside the weights and the
optimizer's state. There are no generators to save: draws come from seeds by counter.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic

from fivefold.errors import DivergenceError, FivefoldError
from fivefold.rl.collect import Collected
from fivefold.rl.examine import mean_of_groups
from fivefold.rl.learner import Update
from fivefold.rl.loop_config import LoopConfig
from fivefold.rl.mismatch import Mismatch
from fivefold.rl.rollout import Rollout

UNJUDGED = ("invalid", "infra")
"""Why a rollout could not be judged; without rewards that an algorithm needs, it stays."""
FAILURES = (*UNJUDGED, "broken", "aborted")
"""Why a rollout was left out, where rewards are needed."""
_MOST_REASONS = 20
"""Kinds of reasons that are remembered, the commonest; the others are one together."""
_OTHER_REASONS = "other reasons"


class NoSignalError(FivefoldError, RuntimeError):
    """Batch after batch nothing could be learned from."""


class Progress(pydantic.BaseModel):
    """Where a loop stands; JSON beside the saved tensors."""

    batch: int = 0
    """Batches sampled."""
    updates: int = 0
    """Optimizer steps tried."""
    version: int = 0
    """Weight pushes: the policy version that samples next."""
    drawn: dict[str, int] = {}
    """Prompts drawn from each source."""
    counts: dict[str, int] = {}
    """Groups and rollouts by what became of them, over all batches."""
    sampled_tokens: int = 0
    """Tokens that the engine sampled for training."""
    skipped_in_row: int = 0
    """Updates left out for a non-finite gradient or loss since the last good one."""
    no_signal_in_row: int = 0
    """Batches left out since the last one that trained."""
    reasons: dict[str, int] = {}
    """Why rollouts could not be judged, by kind, and how often."""
    reason_examples: dict[str, str] = {}
    """The judge's words for one rollout of each kind."""
    heldout_reasons: dict[str, int] = {}
    """Why held-out answers could not be judged, by kind, and how often."""
    heldout_reason_examples: dict[str, str] = {}
    """The judge's words for one held-out answer of each kind."""
    rho_histogram: list[int] = []
    """Tokens by log2 rho, over all batches; bins as in `mismatch.EDGES`."""
    rho_exact_tokens: int = 0
    """Of these, tokens with rho exactly 1."""
    rho_nan_tokens: int = 0
    """Tokens beside these that have no rho, for a log-probability was NaN."""
    shown: list[dict[str, str]] = []
    """Rollouts along training, as the report shows them."""
    judged: list[dict[str, Any]] = []
    """Rollouts of a late batch that trained, token by token, as `shown` describes them."""


def count_batch(progress: Progress, collected: Collected) -> None:
    """Count what was sampled and what became of it."""
    progress.batch += 1
    counts = Counter(progress.counts)
    counts.update(collected.counts)
    progress.counts = dict(counts)
    count_reasons(progress, collected.reasons, collected.examples)
    progress.sampled_tokens += sum(rollout.sampled_tokens for rollout in collected.rollouts)


def count_reasons(progress: Progress, reasons: Counter[str], examples: Mapping[str, str]) -> None:
    """Remember why rollouts could not be judged."""
    progress.reasons, progress.reason_examples = _add_reasons(
        Counter(progress.reasons) + reasons, {**examples, **progress.reason_examples}
    )


def count_heldout_reasons(
    progress: Progress, reasons: Counter[str], examples: Mapping[str, str]
) -> None:
    """Remember why held-out answers could not be judged."""
    progress.heldout_reasons, progress.heldout_reason_examples = _add_reasons(
        Counter(progress.heldout_reasons) + reasons,
        {**examples, **progress.heldout_reason_examples},
    )


def _add_reasons(
    reasons: Counter[str], examples: Mapping[str, str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the commonest kinds, the others as one, and the examples of these kinds."""
    others = reasons.pop(_OTHER_REASONS, 0)
    kept = dict(reasons.most_common(_MOST_REASONS))
    others += sum(reasons.values()) - sum(kept.values())
    found = kept | ({_OTHER_REASONS: others} if others else {})
    return found, {kind: examples[kind] for kind in kept if kind in examples}


def note_no_signal(progress: Progress, collected: Collected, config: LoopConfig) -> None:
    """Count a batch that says nothing; beyond the limit, stop.

    Raises:
        NoSignalError: too many in a row.
    """
    progress.no_signal_in_row += 1
    if progress.no_signal_in_row < config.sampling.no_signal_limit:
        return
    counts = collected.counts
    rewards = [r.reward for r in collected.rollouts if r.reward is not None]
    mean = f"mean reward {math.fsum(rewards) / len(rewards):.3g}" if rewards else "no reward at all"
    failed = ", ".join(f"{counts[name]} rollouts {name}" for name in FAILURES if counts[name])
    commonest = [collected.examples[kind] for kind, _ in collected.reasons.most_common(1)]
    reason = "".join(f", most often: {words}" for words in commonest)
    raise NoSignalError(
        expected=f"a batch to learn from within {config.sampling.no_signal_limit} batches",
        found=f"none up to batch {progress.batch}: of {counts['drawn']} groups "
        f"{counts['dropped_no_variance'] + counts['no_variance']} with equal rewards, "
        f"{counts['dropped_invalid']} with too few judged; {mean}"
        + (f"; {failed}{reason}" if failed else ""),
        fix="Choose easier or harder prompts, fine-tune first (`--sft` of `fivefold rl`), or "
        "correct what judges",
    )


def note_updates(progress: Progress, updates: Sequence[Update], config: LoopConfig) -> None:
    """Count updates; raise DivergenceError where too many in a row were left out."""
    for update in updates:
        progress.updates += 1
        progress.skipped_in_row = progress.skipped_in_row + 1 if update.is_skipped else 0
        if progress.skipped_in_row > config.update.nonfinite_limit:
            raise DivergenceError(
                expected=f"at most {config.update.nonfinite_limit} updates in a row with a "
                "non-finite gradient or loss",
                found=f"{progress.skipped_in_row} up to batch {progress.batch}",
                fix="Lower `update.lr`, look at `metrics.jsonl` before that batch, or raise "
                "`nonfinite_limit`; the same command goes on from the last saved state",
            )


def sampling_metrics(collected: Collected, config: LoopConfig) -> dict[str, float]:
    """Return what a batch's rollouts look like."""
    rollouts, counts = collected.rollouts, collected.counts
    values: dict[str, float] = {
        "rl/groups_drawn": counts["drawn"],
        "rl/groups_kept": counts["kept"],
        "rl/groups_dropped_no_variance": counts["dropped_no_variance"],
        "rl/groups_dropped_invalid": counts["dropped_invalid"],
        "rl/groups_repaired": counts["repaired"],
        "rl/refill_rounds": max(counts["rounds"] - 1, 0),
        **{f"rl/rollouts_{name}": counts[name] for name in FAILURES},
    }
    if not rollouts:
        return values
    lengths = [rollout.sampled_tokens for rollout in rollouts]
    values["rl/response_tokens_mean"] = float(np.mean(lengths))
    values["rl/response_tokens_max"] = max(lengths)
    values["rl/truncated_fraction"] = float(np.mean([r.is_truncated for r in rollouts]))
    values["rl/sampled_tokens"] = sum(lengths)
    return values | _reward_metrics(rollouts, config)


def _reward_metrics(rollouts: Sequence[Rollout], config: LoopConfig) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            groups.setdefault(rollout.group, []).append(rollout.reward)
    if not groups:
        return {}
    least = config.evaluation.pass_reward
    reward = mean_of_groups(list(groups.values()))
    passes = mean_of_groups([[float(r >= least) for r in group] for group in groups.values()])
    values = {
        "rl/reward_mean": reward.value,
        "rl/reward_error": reward.error,
        "rl/pass_rate": passes.value,
        "rl/pass_error": passes.error,
    }
    return {name: value for name, value in values.items() if not math.isnan(value)}


def training_metrics(updates: Sequence[Update], mismatch: Mismatch) -> dict[str, float]:
    """Return what a batch's updates did, means over them."""
    names = updates[0].measured
    values = {
        f"rl/{name}": float(np.mean([update.measured[name] for update in updates]))
        for name in names
    }
    values |= {f"rl/{name}": value for name, value in mismatch.metrics().items()}
    values["rl/gradient_norm"] = max(update.gradient_norm for update in updates)
    values["rl/skipped_updates"] = sum(update.is_skipped for update in updates)
    values["rl/max_violation_worst"] = max(update.max_violation for update in updates)
    return values


def add_histogram(progress: Progress, mismatch: Mismatch) -> None:
    """Add a batch's tokens to the histogram of rho."""
    before = progress.rho_histogram or [0] * len(mismatch.histogram)
    progress.rho_histogram = [a + b for a, b in zip(before, mismatch.histogram, strict=True)]
    progress.rho_exact_tokens += mismatch.exact_tokens
    progress.rho_nan_tokens += mismatch.nan_tokens


def batch_line(progress: Progress, config: LoopConfig, values: Mapping[str, float]) -> str:
    """Return a batch as one line for the console."""
    parts = [f"batch {progress.batch}/{config.batches}"]
    for word, mean, error, form in (
        ("reward", "reward_mean", "reward_error", ".2f"),
        ("pass", "pass_rate", "pass_error", ".0%"),
    ):
        if f"rl/{mean}" in values:
            found = f"{word} {values[f'rl/{mean}']:{form}}"
            if f"rl/{error}" in values:
                found += f" ± {values[f'rl/{error}']:{form}}"
            parts.append(found)
    for word, name in (("tokens", "response_tokens_mean"), ("rho", "rho_mean")):
        if f"rl/{name}" in values:
            parts.append(f"{word} {values[f'rl/{name}']:.3g}")
    for words, names in failures_by_outcome(config).items():
        if found := sum(values.get(f"rl/rollouts_{name}", 0) for name in names):
            parts.append(f"{found:.0f} rollouts {words}")
    if values.get("rl/rho_nan_tokens"):
        parts.append(f"{values['rl/rho_nan_tokens']:.0f} tokens without a rho")
    parts.append(f"{values['rl/sample_seconds'] + values['rl/train_seconds']:.1f} s")
    return "  ".join(parts) + ("  SKIPPED: no signal" if values["rl/no_signal"] else "")


def failures_by_outcome(config: LoopConfig) -> dict[str, tuple[str, ...]]:
    """Return what becomes of rollouts that fail, in words, and in which ways they do."""
    if config.needs_rewards:
        return {"left out": FAILURES}
    others = tuple(name for name in FAILURES if name not in UNJUDGED)
    return {"left out": others, "not judged": UNJUDGED}


def examination_line(progress: Progress, metrics: Mapping[str, float]) -> str:
    """Return an examination as one line for the console: pass rates, and what was not judged."""
    rate, parts = "rl/eval_pass_rate_", list[str]()
    for name in (metric.removeprefix(rate) for metric in metrics if metric.startswith(rate)):
        error = metrics.get(f"rl/eval_pass_error_{name}")
        beside = "" if error is None else f" ± {error:.1%}"
        parts.append(f"{name} {metrics[rate + name]:.1%}{beside}")
    found = [f"held-out problems solved: {', '.join(parts)}"] if parts else []
    if failed := metrics.get("rl/eval_failed_rollouts"):
        asked = metrics["rl/eval_rollouts"]
        found.append(f"{failed:.0f} of {asked:.0f} held-out answers not judged")
    return f"batch {progress.batch}  {'; '.join(found) or 'no held-out problem examined'}"
