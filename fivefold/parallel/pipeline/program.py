"""What the pipeline runtime asks of a stage, and what a stage asks of a loss.

A loss is split by where its parts live: the head's stage takes the language losses of all depths,
every stage the auxiliary losses of its own routers and indexers. Each is the microbatch's share of
the step's loss, with denominators of the whole step, so that shares add up over microbatches,
stages, data and context ranks without a further factor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fivefold.models.moe import Routing
from fivefold.models.surroundings import Surroundings
from fivefold.models.transformer import HeadLoss
from fivefold.ops.index_loss import IndexLoss


class Microbatch(Protocol):
    """Some rows, or this rank's tokens of them; every stage has them, so no edge carries them."""

    @property
    def ids_BT(self) -> Tensor:  # noqa: N802 - a tensor's name
        """Token ids, int64."""
        ...

    @property
    def ahead_BT(self) -> list[Tensor]:  # noqa: N802 - a tensor's name
        """For MTP depth k = 1, 2, ...: the token k places ahead."""
        ...

    @property
    def surround(self) -> Callable[[], Surroundings]:
        """Works out who sees whom, which each forward does for itself."""
        ...


@dataclass
class Seen:
    """What the layers of one stage decided for one microbatch."""

    routers_below: int = 0
    """MoE layers of the main stack in the stages before."""
    main_routing: list[Routing] = field(default_factory=list)
    """Of the main stack's MoE layers, bottom first."""
    mtp_routing: list[Routing] = field(default_factory=list)
    """Of the MTP layer, one a depth."""
    index_losses: list[IndexLoss] = field(default_factory=list)
    """Of the indexers that learn."""


class StageObjective(Protocol):
    """A loss, taken apart for stages; its microbatches have labels too, which only it knows."""

    def head(
        self, states: Sequence[Tensor], head_WD: Tensor, microbatch: Any, head_loss: HeadLoss
    ) -> Tensor | None:
        """Return the share of the losses over the vocabulary, None if there is none.

        `states` are normalised: the main stack's, then one a depth of the MTP layer. `head_loss`
        knows which rows of the head `head_WD` are.
        """
        ...

    def auxiliary(self, seen: Seen, microbatch: Any) -> Tensor | None:
        """Return the share of the losses of these routers and indexers, None if there is none."""
        ...


class StageResult(NamedTuple):
    """What a stage makes of one microbatch."""

    states: tuple[Tensor, ...]
    """For the stage after; empty on the last."""
    losses: tuple[Tensor, ...] = ()
    """Scalars that begin a backward pass here, beside the gradients of the states."""


class Message(NamedTuple):
    """Shape and dtype of one tensor between stages."""

    shape: torch.Size
    dtype: torch.dtype


class StageProgram(Protocol):
    """A stage as the runtime sees it."""

    def __call__(self, microbatch: Any, states: tuple[Tensor, ...]) -> StageResult:
        """Run forward on what the stage before has sent."""
        ...

    def messages(self, microbatch: Any) -> list[Message]:
        """Return what the stage before sends for this microbatch."""
        ...


class GradientKeeper(Protocol):
    """Who owns the gradients that backward passes add to."""

    def acquire(self, stage: int) -> None:
        """Make `grad` of the stage's parameters ready to be added to; called before every piece."""
        ...

    def release(self, stage: int) -> None:
        """Take the gradients away: another stage's turn has come, or the step's end."""
        ...
