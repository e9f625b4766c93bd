"""Streams: what a loss reads and what it returns, one value a token, flat over a microbatch.

An algorithm is a function from the current log-probabilities and these streams to a loss a token;
sequences matter only through sums over `sequence_N`. Where a token is masked every stream holds 0
and every ratio is exactly 1, for inf times a mask of 0 is NaN.

Shapes: N places of a microbatch, S samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Streams:
    """Per-token values of S whole samples at N places, padding included."""

    mask_N: Tensor
    """Does the place's label train? bool."""
    sequence_N: Tensor
    """Number of the sample, int64; 0 where nothing trains."""
    advantages_N: Tensor
    """What the algorithm assigned."""
    weights_N: Tensor
    """Factor of the token's loss."""
    rollout_logprobs_N: Tensor
    """Log-probability under the engine that sampled, in nats."""
    tokens_S: Tensor
    """Tokens of each sample that train, int64."""
    copies_S: Tensor
    """How often each sample counts, int64."""
    old_logprobs_N: Tensor | None = None
    """Under the trainer's weights before the first step on the batch; None: they are current."""
    teacher_logprobs_N: Tensor | None = None
    """Under the teacher; None where a sample has none."""

    def old(self, logprobs_N: Tensor) -> Tensor:
        """Return the old policy's log-probabilities: the current ones where none were recorded."""
        return logprobs_N.detach() if self.old_logprobs_N is None else self.old_logprobs_N

    def ratio(self, above_N: Tensor, below_N: Tensor) -> Tensor:
        """Return exp(above - below) where tokens train, exactly 1 elsewhere."""
        return (above_N - below_N).where(self.mask_N, 0.0).exp()

    def sequence_sums(self, values_N: Tensor) -> Tensor:
        """Return the sum over each sample's trained tokens, [S]."""
        kept_N = values_N.where(self.mask_N, 0.0)
        return kept_N.new_zeros(len(self.tokens_S)).index_add(0, self.sequence_N, kept_N)


class TokenLoss(NamedTuple):
    """A loss before it is summed, and what is worth watching."""

    loss_N: Tensor
    """Loss of each token, differentiable by the log-probabilities; what is masked is ignored."""
    marks: dict[str, Tensor]
    """Values [N] without gradient, of which a step reports the means over trained tokens."""


TokenLossFunction = Callable[[Tensor, Streams], TokenLoss]
"""(current log-probabilities [N], streams) -> loss of each token: all that an algorithm is."""
