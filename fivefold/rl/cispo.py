"""CISPO (MiniMax-M1, arXiv 2506.13585): clip the weight, not the token.

loss = -sg(clip(r, low, high)) A log new with r = new / old. PPO's clipping silences rare tokens
that a step has made much likelier, often the forks of a thought ("wait", "however"); here they keep
a gradient, with a bounded weight. Like every loss of the form weight times log-probability, only
its gradient means something.
"""

from torch import Tensor

from fivefold.rl.config import CispoConfig
from fivefold.rl.streams import Streams, TokenLoss


def cispo_loss(logprobs_N: Tensor, streams: Streams, config: CispoConfig) -> TokenLoss:
    """Return the CISPO loss of each token, and where its weight was bounded."""
    ratio_N = streams.ratio(logprobs_N.detach(), streams.old(logprobs_N))
    weight_N = ratio_N.clamp(config.ratio_low, config.ratio_high)
    marks = {
        "clip_low_fraction": ratio_N < config.ratio_low,
        "clip_high_fraction": ratio_N > config.ratio_high,
    }
    return TokenLoss(-weight_N * streams.advantages_N * logprobs_N, marks)
