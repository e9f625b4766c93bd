"""PPO's clipped surrogate (arXiv 1707.06347, eq. 7), with a lower and an upper width of its own.

loss = -min(r A, clip(r, 1 - low, 1 + high) A) with r = new / old, a token. The gradient dies in two
of four quadrants only: A > 0 with r above the window, A < 0 with r below it. In the other two a
step would undo what was overdone, and the gradient stays; there `dual_clip` (arXiv 1912.09729) may
bound what a negative advantage with a huge ratio can do.

DAPO is this with a wider upper side and a token mean, Dr.GRPO with another advantage and a fixed
denominator. On the first step on a batch r is 1, and all of them are REINFORCE.
"""

import torch
from torch import Tensor

from fivefold.rl.config import PpoClipConfig
from fivefold.rl.streams import Streams, TokenLoss


def ppo_clip_loss(logprobs_N: Tensor, streams: Streams, config: PpoClipConfig) -> TokenLoss:
    """Return the clipped surrogate of each token, and where it was clipped."""
    ratio_N = streams.ratio(logprobs_N, streams.old(logprobs_N))
    return clipped_surrogate(
        ratio_N, streams.advantages_N, config.epsilon_low, config.epsilon_high, config.dual_clip
    )


def clipped_surrogate(
    ratio_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None = None,
) -> TokenLoss:
    """Return -min(r A, clip(r) A) of each token, and where the gradient dies."""
    clipped_N = ratio_N.clamp(1 - epsilon_low, 1 + epsilon_high)
    gain_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    is_low_N = (ratio_N < 1 - epsilon_low) & (advantages_N < 0)
    is_high_N = (ratio_N > 1 + epsilon_high) & (advantages_N > 0)
    marks = {"clip_low_fraction": is_low_N, "clip_high_fraction": is_high_N}
    if dual_clip is not None:
        bounded_N = torch.maximum(gain_N, dual_clip * advantages_N)
        gain_N = torch.where(advantages_N < 0, bounded_N, gain_N)
        marks["dual_clip_fraction"] = (ratio_N > dual_clip) & (advantages_N < 0)
    return TokenLoss(-gain_N, {name: mark.detach() for name, mark in marks.items()})
