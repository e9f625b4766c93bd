"""Truncated importance sampling: bound the correction for the engine instead of masking by it.

loss = -clamp(rho, low, high) min(r A, clip(r) A) with rho = old / rollout, r = new / old. IcePop
drops a token beyond its window; this one trains it with the bound's weight, which keeps its bias
small and its variance bounded (Ionides 2008; brought to RL of language models by Yao et al. 2025).
"""

from torch import Tensor

from fivefold.rl.config import TisConfig
from fivefold.rl.streams import Streams, TokenLoss
from fivefold.rl.surrogate import clipped_surrogate


def truncated_loss(logprobs_N: Tensor, streams: Streams, config: TisConfig) -> TokenLoss:
    """Return the surrogate of each token under its truncated weight, and where that was bounded."""
    old_N = streams.old(logprobs_N)
    rho_N = streams.ratio(old_N, streams.rollout_logprobs_N)
    weight_N = rho_N.clamp(config.weight_low, config.weight_high)
    surrogate = clipped_surrogate(
        streams.ratio(logprobs_N, old_N),
        streams.advantages_N,
        config.epsilon_low,
        config.epsilon_high,
    )
    marks = {
        "weight_low_fraction": rho_N < config.weight_low,
        "weight_high_fraction": rho_N > config.weight_high,
    }
    return TokenLoss(weight_N * surrogate.loss_N, marks | surrogate.marks)
