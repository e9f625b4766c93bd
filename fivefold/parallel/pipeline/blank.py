"""Microbatches without a share in the loss, for data ranks that have to keep step with others.

Rolling gradients are reduced at the end of every run of the table, and experts of other data ranks
take part in every layer, so that these ranks run one table; one that has fewer microbatches than
another fills up with blank ones. They pass through the stages as others do, but no loss, count or
metric sees them, and their gradients are zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fivefold.models.surroundings import Surroundings
from fivefold.models.transformer import HeadLoss
from fivefold.parallel.pipeline.program import Microbatch, Seen, StageObjective


@dataclass(frozen=True)
class BlankMicrobatch:
    """The inputs of some rows, to be computed for nothing."""

    ids_BT: Tensor
    """Token ids, int64."""
    ahead_BT: list[Tensor]
    """For MTP depth k = 1, 2, ...: the token k places ahead."""
    surround: Callable[[], Surroundings]
    """Works out who sees whom."""


def blank_of(batch: Microbatch) -> BlankMicrobatch:
    """Return a blank microbatch of these inputs."""
    return BlankMicrobatch(batch.ids_BT, batch.ahead_BT, batch.surround)


@dataclass(frozen=True)
class SparingObjective:
    """An objective that blank microbatches do not reach."""

    objective: StageObjective

    def head(
        self, states: Sequence[Tensor], head_WD: Tensor, microbatch: Any, head_loss: HeadLoss
    ) -> Tensor | None:
        """Return the objective's share; of a blank one zero, for what has a gradient in others.

        None where the objective has no loss over the vocabulary, blank or not.
        """
        if isinstance(microbatch, BlankMicrobatch):
            if not all(state.requires_grad for state in states):
                return None
            return torch.stack([part.sum() for part in (*states, head_WD[:1])]).sum() * 0.0
        return self.objective.head(states, head_WD, microbatch, head_loss)

    def auxiliary(self, seen: Seen, microbatch: Any) -> Tensor | None:
        """Return the objective's share; of a blank one zero, for what only indexers learn.

        None where nothing is learned here.
        """
        if isinstance(microbatch, BlankMicrobatch):
            learned = [loss.total for loss in seen.index_losses]
            return torch.stack(learned).sum() * 0.0 if learned else None
        return self.objective.auxiliary(seen, microbatch)
