"""GSPO (arXiv 2507.18071): the ratio of a whole sequence, its token ratios' geometric mean.

s = exp(mean over tokens of log new - log old), clipped as PPO clips its token ratio. It is written
on tokens as the paper's GSPO-token (section 4.3): s_t = sg(s) new_t / sg(new_t), which has the
value of s at every token and, where all tokens of a sequence share an advantage, its gradient under
a sequence mean; advantages may then differ within a sequence. Surprise: the window is a thousand
times narrower than PPO's, for a mean of many logarithms hardly moves.
"""

from torch import Tensor

from fivefold.rl.config import GspoConfig
from fivefold.rl.streams import Streams, TokenLoss
from fivefold.rl.surrogate import clipped_surrogate


def gspo_loss(logprobs_N: Tensor, streams: Streams, config: GspoConfig) -> TokenLoss:
    """Return the GSPO-token loss of each token, and where its sequence was clipped."""
    drift_N = (logprobs_N - streams.old(logprobs_N)).detach()
    mean_S = streams.sequence_sums(drift_N) / streams.tokens_S.clamp_min(1)
    # new / sg(new): 1 in value, the token's own gradient.
    unit_N = streams.ratio(logprobs_N, logprobs_N.detach())
    return clipped_surrogate(
        mean_S.exp()[streams.sequence_N] * unit_N,
        streams.advantages_N,
        config.epsilon_low,
        config.epsilon_high,
    )
