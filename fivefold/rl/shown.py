"""Rollouts of a batch as the report shows them: token by token, with what training made of each.

A token carries its advantage, its log-probability in the engine that sampled it and in the trainer
with the same weights, and in the trainer after the batch was learned. Surprise: with one update a
batch the ratio of new to old, which losses clip, is 1 when the loss is computed; what the update
did to a token shows afterwards only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fivefold.rl.config import DistillationConfig
from fivefold.rl.rollout import Rollout
from fivefold.rl.sample import Sample

_MOST_TOKENS = 400
"""Tokens of a rollout that are shown."""


def choose_shown(
    samples: Sequence[Sample], count: int, distillation: DistillationConfig | None = None
) -> list[Sample]:
    """Return `count` samples that train, half of the worst judged and half of the best.

    Of equally judged ones the shorter come first, and no group comes twice on one side.
    """
    worth = {
        id(sample): float(token_worth(sample, distillation)[sample.loss_mask].mean())
        for sample in samples
        if sample.loss_tokens
    }
    ranked = sorted(
        (sample for sample in samples if id(sample) in worth),
        key=lambda sample: (worth[id(sample)], len(sample.ids)),
    )
    low = _distinct(ranked, count // 2)
    taken = {id(sample) for sample in low}
    best_first = sorted(ranked, key=lambda sample: (-worth[id(sample)], len(sample.ids)))
    high = _distinct([s for s in best_first if id(s) not in taken], count - len(low))
    return [*low, *reversed(high)]


def describe_shown(
    samples: Sequence[Sample],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    decode: Callable[[Sequence[int]], str],
    distillation: DistillationConfig | None = None,
) -> list[dict[str, Any]]:
    """Return the samples as the report's block `rollouts` takes them.

    `before` and `after` hold the trainer's log-probability of each token, before and after the
    batch was learned.
    """
    return [
        _describe(sample, token_worth(sample, distillation, old), old, new, decode)
        for sample, old, new in zip(samples, before, after, strict=True)
    ]


def _describe(
    sample: Sample,
    worth: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
    decode: Callable[[Sequence[int]], str],
) -> dict[str, Any]:
    begin = sample.prompt_tokens if isinstance(sample, Rollout) else 0
    places = np.arange(begin, len(sample.ids))
    places = places[:_MOST_TOKENS] if begin else np.flatnonzero(sample.loss_mask)[:_MOST_TOKENS]
    trains = sample.loss_mask[places]
    reward = "not judged" if sample.reward is None else f"reward {sample.reward:g}"
    left_out = len(sample.ids) - begin - len(places)
    rest = f", {left_out} more tokens" if begin and left_out > 0 else ""
    return {
        "label": f"{sample.group}: {reward}{rest}",
        "prompt": decode(sample.ids[:begin].tolist()) if begin else "",
        "tokens": [decode([token]) for token in sample.ids[places].tolist()],
        "advantages": _numbers(worth[places], trains),
        "engine_logprobs": _numbers(sample.rollout_logprobs[places], trains),
        "trainer_logprobs": _numbers(old[places], trains),
        "learned_logprobs": _numbers(new[places], trains),
    }


def token_worth(
    sample: Sample,
    distillation: DistillationConfig | None = None,
    student: np.ndarray | None = None,
) -> np.ndarray:
    """Return the advantage of each token, a teacher's included, as the loss sees it.

    `student` holds the trainer's log-probabilities; None: the engine's stand for them. Without a
    config of the distillation its defaults hold.
    """
    assert sample.advantages is not None, "a batch that trains has advantages"
    worth = np.where(sample.loss_mask, sample.advantages, 0.0)
    if sample.teacher_logprobs is None:
        return worth
    config = distillation or DistillationConfig()
    student = sample.rollout_logprobs if student is None else student
    returned = 0.0
    for place in reversed(np.flatnonzero(sample.loss_mask)):
        gap = sample.teacher_logprobs[place] - student[place]
        returned = gap + config.discount * returned
        worth[place] += config.weight * returned
    return worth


def _distinct(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return the first of each group, and then the others, up to `count`."""
    firsts = {sample.group: sample for sample in reversed(samples)}
    others = [sample for sample in samples if firsts[sample.group] is not sample]
    firsts_in_order = [sample for sample in samples if firsts[sample.group] is sample]
    return [*firsts_in_order, *others][:count]


def _numbers(values: np.ndarray, trains: np.ndarray) -> list[float | None]:
    """Return rounded numbers; None where the token does not train."""
    pairs = zip(values.tolist(), trains.tolist(), strict=True)
    return [float(f"{value:.6g}") if does else None for value, does in pairs]
