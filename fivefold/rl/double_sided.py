"""Direct double-sided importance sampling, GLM-5's loss for asynchronous RL (section 4.1, eq. 3-5).

With r = new / rollout, straight against the log-probabilities that the engine recorded:

    loss = -f(r) A log new,   f(r) = r where 1 - low < r < 1 + high, edges excluded
                                     0 elsewhere

No third policy is kept: a rollout that spans several weight versions has none. Outside the window
all four quadrants are silent, where PPO's surrogate keeps two. f is a constant of the gradient,
which the report does not say: differentiated too, it would turn the loss into one of r log new.
With f constant the gradient is that of -r A where f is not 0, and at the window [1/beta, beta] that
of IcePop on the first step on a batch.
"""

from torch import Tensor

from fivefold.rl.config import DoubleSidedConfig
from fivefold.rl.streams import Streams, TokenLoss


def double_sided_loss(logprobs_N: Tensor, streams: Streams, config: DoubleSidedConfig) -> TokenLoss:
    """Return the double-sided loss of each token, and where it was masked.

    Its value means nothing: log-probabilities of good and of bad tokens fall alike. Its gradient
    does.
    """
    ratio_N = streams.ratio(logprobs_N.detach(), streams.rollout_logprobs_N)
    is_low_N = ratio_N <= 1 - config.epsilon_low
    is_high_N = ratio_N >= 1 + config.epsilon_high
    factor_N = ratio_N.masked_fill(is_low_N | is_high_N, 0.0)
    marks = {
        "masked_fraction": is_low_N | is_high_N,
        "masked_low_fraction": is_low_N,
        "masked_high_fraction": is_high_N,
    }
    return TokenLoss(-factor_N * streams.advantages_N * logprobs_N, marks)
