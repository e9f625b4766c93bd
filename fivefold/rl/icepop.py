"""IcePop (GLM-5 report, section 3.2, eq. 1): train only where trainer and engine agree.

With rho = old / rollout, the same weights in two engines, and r = new / old:

    loss = -pop(rho) min(r A, clip(r, 1 - low, 1 + high) A),   pop(rho) = rho within [1/beta, beta]
                                                                          0   outside

rho is a constant: it corrects for who sampled, and is not what the step changes. On the first step
on a batch r is 1, so that the gradient is -pop(rho) A grad log new. Surprise: a fixed window masks
fewer tokens as the gap between the engines widens evenly, so that a small masked fraction is no
proof of health; `mismatch` measures the gap itself.
"""

from torch import Tensor

from fivefold.rl.config import IcePopConfig
from fivefold.rl.streams import Streams, TokenLoss
from fivefold.rl.surrogate import clipped_surrogate


def icepop_loss(logprobs_N: Tensor, streams: Streams, config: IcePopConfig) -> TokenLoss:
    """Return the IcePop loss of each token, and where it was masked or clipped."""
    old_N = streams.old(logprobs_N)
    rho_N = streams.ratio(old_N, streams.rollout_logprobs_N)
    weight_N = pop(rho_N, config.beta)
    surrogate = clipped_surrogate(
        streams.ratio(logprobs_N, old_N),
        streams.advantages_N,
        config.epsilon_low,
        config.epsilon_high,
    )
    marks = {
        "masked_fraction": weight_N == 0,
        "masked_low_fraction": rho_N < 1 / config.beta,
        "masked_high_fraction": rho_N > config.beta,
    }
    return TokenLoss(weight_N * surrogate.loss_N, marks | surrogate.marks)


def pop(rho_N: Tensor, beta: float) -> Tensor:
    """Return rho where it lies within [1 / beta, beta], edges included, and 0 elsewhere.

    NaN stays NaN: a broken log-probability must not look like a masked token.
    """
    is_outside_N = (rho_N < 1 / beta) | (rho_N > beta)
    return rho_N.masked_fill(is_outside_N, 0.0)
