"""The one denominator rule: count over the whole step before the first microbatch.

A mean of microbatch means, or of rank means, weighs a token by the company it happens to keep. Here
the denominators are counted over the samples of the step, and every token gets its final factor at
once; microbatches then only ADD. The stages train on one device, whose samples are all there are.
Data-parallel ranks, each with its part of a step, would add their counts first (`sum_over_ranks`,
which only the test of two ranks calls) and then their gradients: a sum, where many engines average.

With n_i tokens that train in sample i, c_i its copies, over the whole step:

    sequence_mean   c_i / n_i / sum c       GRPO, GLM-5 (eq. 1)
    token_mean      c_i / sum c n           DAPO
    fixed           c_i / L / sum c         Dr.GRPO, L = `fixed_tokens`

Surprise: a sample of which no token trains is in no denominator. Frameworks differ here: TRL counts
it where it counts sequences.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fivefold.rl.config import ReductionConfig
from fivefold.rl.sample import Sample
from fivefold.rl.streams import Streams, TokenLoss


class Totals(NamedTuple):
    """Denominators of a step."""

    tokens: int
    """Tokens that train, copies counted."""
    sequences: int
    """Samples of which a token trains, copies counted."""


class PolicyLoss(NamedTuple):
    """A microbatch's share of the step."""

    total: Tensor
    """Scalar to differentiate; shares add up to the loss."""
    measured: dict[str, Tensor]
    """Shares of means over the step's trained tokens, scalars without gradient; they add up."""


def count_totals(samples: Iterable[Sample]) -> Totals:
    """Count this rank's part of a step's denominators."""
    counted = [(sample.copies, sample.loss_tokens) for sample in samples if sample.loss_tokens]
    return Totals(
        sum(copies * tokens for copies, tokens in counted), sum(copies for copies, _ in counted)
    )


def sum_over_ranks(
    totals: Totals,
    device: str | torch.device = "cpu",
    group: dist.ProcessGroup | None = None,
) -> Totals:
    """Return the denominators of all data-parallel ranks together; every rank must call."""
    counts = torch.tensor(totals, dtype=torch.int64, device=device)
    dist.all_reduce(counts, group=group)
    return Totals(*counts.tolist())


def token_factors(
    streams: Streams, totals: Totals, config: ReductionConfig, dtype: torch.dtype
) -> Tensor:
    """Return the factor [N] of each token's loss; 0 where nothing trains."""
    copies_S = streams.copies_S.to(dtype)
    if config.kind == "token_mean":
        factor_S = copies_S / max(totals.tokens, 1)
    elif config.kind == "sequence_mean":
        factor_S = copies_S / streams.tokens_S.clamp_min(1) / max(totals.sequences, 1)
    else:
        assert config.fixed_tokens is not None, "the config requires `fixed_tokens`"
        factor_S = copies_S / (config.fixed_tokens * max(totals.sequences, 1))
    return factor_S[streams.sequence_N].where(streams.mask_N, 0.0)


def reduce_loss(
    loss: TokenLoss, streams: Streams, totals: Totals, config: ReductionConfig
) -> PolicyLoss:
    """Sum a microbatch's token losses with their factors and weights, and its marks as means."""
    factors_N = token_factors(streams, totals, config, loss.loss_N.dtype)
    # A masked place may hold any value: 0 times NaN would still be NaN.
    kept_N = loss.loss_N.where(streams.mask_N, 0.0)
    mean = token_factors(streams, totals, ReductionConfig(kind="token_mean"), loss.loss_N.dtype)
    with torch.no_grad():
        measured = {
            name: (mark_N.to(mean.dtype).where(streams.mask_N, 0.0) * mean).sum()
            for name, mark_N in loss.marks.items()
        }
    return PolicyLoss((kept_N * factors_N * streams.weights_N).sum(), measured)
