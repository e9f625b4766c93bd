"""Advantages from the rewards of a group: GRPO, Dr.GRPO, RLOO.

With mean m and deviation s of the group's rewards: GRPO (R - m) / (s + epsilon) (DeepSeekMath,
arXiv 2402.03300), Dr.GRPO and GLM-5's agentic RL R - m, RLOO R less the mean of the others, which
is n / (n - 1) (R - m). Groups are told by name, never by position. Whoever failed to produce a
reward is absent, and whoever is repeated to fill the group is seen once: repeats would narrow s.

Surprise: equal rewards do not make equal zeros. The mean of three 0.1s may differ from 0.1 in the
last bit, and so does 0.3 - 0.2; GRPO divides that by as little. Rewards that differ by rounding
alone are therefore taken as equal before, and have advantages of exactly 0.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fivefold.errors import ConfigError
from fivefold.rl.config import AdvantageConfig, AlgorithmConfig, OverlongConfig
from fivefold.rl.sample import Group, Sample, SampleError

_ROUNDING = 1e-12
"""Difference of rewards, relative to the largest, up to which they are equal: fp64 rounds at 1e-16,
and rewards are sums of a few terms."""


@dataclass(frozen=True)
class Assigned:
    """Samples ready to train, and what became of their groups."""

    samples: list[Sample]
    """In the order of their groups."""
    counts: Counter[str]
    """Groups: `kept`, `dropped_invalid`, `dropped_no_variance`, and of those kept `no_variance`
    and `repaired`; samples: `truncated_masked`."""

    @property
    def has_signal(self) -> bool:
        """Did rewards give any token an advantage? A teacher's come later, with the loss."""
        return any(
            s.advantages is not None and bool(s.advantages[s.loss_mask].any()) for s in self.samples
        )


def group_advantages(rewards: Sequence[float], config: AdvantageConfig) -> list[float]:
    """Return the advantage of each of at least two rewards of one group, as samples may have.

    Raises:
        ConfigError: fewer than two rewards; they have no baseline.
    """
    n = len(rewards)
    if n < 2:
        raise ConfigError(
            expected=f"groups of at least 2 rewards for the method `{config.method}`",
            found=str(n),
            fix="Raise `group_size`, or distil from a teacher, which needs no group",
        )
    if not _has_variance(rewards):
        return [0.0] * n
    mean = math.fsum(rewards) / n
    deviations = [reward - mean for reward in rewards]
    if config.method == "mean":
        return deviations
    if config.method == "rloo":
        return [n / (n - 1) * deviation for deviation in deviations]
    squares = math.fsum(deviation * deviation for deviation in deviations)
    std = math.sqrt(squares / (n - 1 if config.std == "sample" else n))
    return [deviation / (std + config.std_epsilon or 1.0) for deviation in deviations]


def _has_variance(rewards: Sequence[float]) -> bool:
    """Do rewards differ by more than rounding?"""
    return max(rewards) - min(rewards) > _ROUNDING * max(map(abs, rewards))


def repair_group(group: Group, policy: str) -> list[Sample]:
    """Return a group's samples, repeated to its size where some are missing; empty: drop it.

    GLM-5, section 4.1: a group with more than half of its samples valid is padded with repeats of
    these, another is dropped. A repeat is a count, not a second forward pass: `Sample.copies`.
    """
    valid = len(group.samples)
    if 2 * valid <= group.wanted:
        return []
    if policy == "shrink":
        return list(group.samples)
    times, more = divmod(group.wanted, valid)
    return [
        dataclasses.replace(sample, copies=sample.copies * (times + (place < more)))
        for place, sample in enumerate(group.samples)
    ]


def overlong_penalty(sampled_tokens: int, config: OverlongConfig) -> float:
    """Return the addition to the reward of a response of so many tokens, from -1 to 0."""
    excess = sampled_tokens - config.begin_tokens
    return -min(max(excess / config.ramp_tokens, 0.0), 1.0)


def assign_advantages(groups: Sequence[Group], config: AlgorithmConfig) -> Assigned:
    """Fill the advantages of all groups; without `config.advantage`, zeros for a teacher to fill.

    A sample whose loss mask is emptied (`masks_truncated`) stays, so that nothing is lost silently;
    it leaves numerators and denominators alike.

    Raises:
        SampleError: a sample to judge has no reward.
    """
    assigned, counts = list[Sample](), Counter[str]()
    for group in groups:
        if config.advantage is None:
            kept, advantages = list(group.samples), [0.0] * len(group.samples)
        else:
            kept, advantages = _judge(group, config.advantage, config.overlong, counts)
        counts["kept"] += bool(kept)
        for sample, advantage in zip(kept, advantages, strict=True):
            filled = np.where(sample.loss_mask, advantage, 0.0)
            changed = dataclasses.replace(sample, advantages=filled)
            if config.masks_truncated and sample.is_truncated:
                changed = dataclasses.replace(changed, loss_mask=np.zeros_like(sample.loss_mask))
                counts["truncated_masked"] += 1
            assigned.append(changed)
    return Assigned(assigned, counts)


def _judge(
    group: Group, config: AdvantageConfig, overlong: OverlongConfig | None, counts: Counter[str]
) -> tuple[list[Sample], list[float]]:
    """Return the samples that stay and their advantages; counts what happened."""
    kept = repair_group(group, config.repair)
    if not kept:
        counts["dropped_invalid"] += 1
        return [], []
    rewards = [_reward(sample) for sample in kept]
    has_variance = _has_variance(rewards)
    if not has_variance and config.zero_variance == "drop":
        counts["dropped_no_variance"] += 1
        return [], []
    counts["repaired"] += len(kept) < group.wanted
    counts["no_variance"] += not has_variance
    if not has_variance and config.zero_variance == "zero":
        return kept, [0.0] * len(kept)
    if overlong is not None:
        penalties = [overlong_penalty(sample.sampled_tokens, overlong) for sample in kept]
        rewards = [reward + penalty for reward, penalty in zip(rewards, penalties, strict=True)]
    return kept, group_advantages(rewards, config)


def _reward(sample: Sample) -> float:
    if sample.reward is None:
        raise SampleError(
            expected="samples with a reward where an algorithm has `advantage`",
            found=f"one of group `{sample.group}` without",
            fix="Leave failed rollouts out; set `advantage` to null where a teacher alone judges",
        )
    return sample.reward
