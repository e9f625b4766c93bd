"""How far trainer and engine disagree about the same tokens under the same weights.

rho = old / rollout is 1 where both compute the same numbers. It is measured at every step, because
what it shows (another kernel, another expert, stale weights, a wrong temperature) ruins RL long
before reward falls. Tokens come from the engine's policy, so that the mean of -log rho estimates
KL(engine || trainer), as does that of rho - 1 - log rho, never negative and with less variance.

Sums only, so that microbatches and ranks merge exactly. Surprise: the histogram's bins narrow by
decades around 1. Two fp32 engines differ in the sixth digit and two of other precisions in the
second, and both have to show. A token without a number on one of the two sides has no rho; it is
counted apart, and in no sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fivefold.rl.streams import Streams

_ABOVE = (
    *(math.log2(1 + 10.0**-digit) for digit in range(7, 0, -1)),
    *(step / 4 for step in range(1, 17)),
)
EDGES = (*(-edge for edge in reversed(_ABOVE)), 0.0, *_ABOVE)
"""Inner edges of the histogram, in log2 rho: 1 plus 1e-7 to 1e-1 by decades, from there to sixteen
four bins an octave, and the same below 1."""


@dataclass(frozen=True)
class Mismatch:
    """Sums over the tokens that train."""

    tokens: int
    """Tokens that have a rho."""
    nan_tokens: int
    """Tokens that have none, for one of the two log-probabilities is NaN."""
    exact_tokens: int
    """Tokens with rho exactly 1."""
    outside_tokens: int
    """Tokens with rho outside [1 / beta, beta]."""
    rho: float
    """Sum of rho."""
    rho_squared: float
    """Sum of its square."""
    log_rho: float
    """Sum of its natural logarithm."""
    largest_log_rho: float
    """Largest absolute logarithm."""
    histogram: tuple[int, ...]
    """Tokens from one of the `EDGES`, included, to the next; the first and last bin are open."""

    def metrics(self) -> dict[str, float]:
        """Return the step's numbers; of no token, none.

        `rho_effective_fraction` is left out where the squares of rho sum to 0 or to infinity, which
        is where all of them are below 1e-162 or one is above 1e154.
        """
        n = self.tokens
        if not n:
            return {"rho_nan_tokens": self.nan_tokens} if self.nan_tokens else {}
        values = {
            "rho_nan_tokens": self.nan_tokens,
            "rho_mean": self.rho / n,
            "rho_exact_fraction": self.exact_tokens / n,
            "rho_outside_fraction": self.outside_tokens / n,
            "rho_largest_log_nats": self.largest_log_rho,
            "engine_kl_nats": -self.log_rho / n,
            "engine_kl_low_variance_nats": (self.rho - n - self.log_rho) / n,
        }
        if 0 < self.rho_squared < math.inf:
            # Kish: how many unweighted tokens the weighted ones are worth. No power of the sum,
            # which may be beyond a float.
            values["rho_effective_fraction"] = self.rho / n * (self.rho / self.rho_squared)
        return values


def measure_mismatch(logprobs_N: Tensor, streams: Streams, beta: float = 2.0) -> Mismatch:
    """Compare the trainer's log-probabilities with those recorded by the engine, in fp64."""
    trainer, engine = logprobs_N.detach().double(), streams.rollout_logprobs_N.double()
    differences = (trainer - engine)[streams.mask_N]
    log_rho = differences[~differences.isnan()]
    rho = log_rho.exp()
    edges = torch.tensor(EDGES, dtype=torch.float64, device=rho.device)
    bins = torch.bucketize(rho.log2(), edges, right=True)
    return Mismatch(
        tokens=len(rho),
        nan_tokens=len(differences) - len(rho),
        exact_tokens=int((log_rho == 0).sum()),
        outside_tokens=int(((rho < 1 / beta) | (rho > beta)).sum()),
        rho=float(rho.sum()),
        rho_squared=float(rho.square().sum()),
        log_rho=float(log_rho.sum()),
        largest_log_rho=float(log_rho.abs().max()) if len(rho) else 0.0,
        histogram=tuple(torch.bincount(bins, minlength=len(EDGES) + 1).tolist()),
    )


def merge_mismatches(parts: Sequence[Mismatch]) -> Mismatch:
    """Merge what microbatches or ranks measured, at least one."""
    return Mismatch(
        tokens=sum(part.tokens for part in parts),
        nan_tokens=sum(part.nan_tokens for part in parts),
        exact_tokens=sum(part.exact_tokens for part in parts),
        outside_tokens=sum(part.outside_tokens for part in parts),
        rho=sum(part.rho for part in parts),
        rho_squared=sum(part.rho_squared for part in parts),
        log_rho=sum(part.log_rho for part in parts),
        largest_log_rho=max(part.largest_log_rho for part in parts),
        histogram=tuple(
            sum(counts) for counts in zip(*(part.histogram for part in parts), strict=True)
        ),
    )
