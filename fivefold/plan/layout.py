"""How a training run is spread over GPUs.

The axes from outer to inner are pipeline, data, context and tensor; experts fold over the three
inner ones, so `expert` divides data x context x tensor and expert gradients are shared by what is
left over. Tensor parallelism splits heads, feed-forwards and vocabulary; the latent projections
and the indexer of MLA stay whole on every tensor rank.
"""

from typing import Literal

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError
from fivefold.plan.config import Recompute
from fivefold.plan.make_schedule import NAMES, placement_of

Sharding = Literal["none", "optimizer", "gradients", "rolling", "weights"]
"""What data ranks share: nothing; optimizer state (ZeRO-1); gradients too (ZeRO-2), `rolling` for
GLM-5's pipeline form with two full gradient buffers; or weights as well (ZeRO-3, FSDP)."""


class Layout(Config):
    """Sizes of all axes and the policies that go with them."""

    gpus: int = pydantic.Field(gt=0)
    """All GPUs of the run."""

    pipeline: int = pydantic.Field(default=1, gt=0)
    """Pipeline ranks."""

    context: int = pydantic.Field(default=1, gt=0)
    """Ranks that share the tokens of a row."""

    tensor: int = pydantic.Field(default=1, gt=0)
    """Ranks that share heads and feed-forward columns."""

    expert: int = pydantic.Field(default=1, gt=0)
    """Ranks that share the experts of a layer."""

    schedule: str = "1f1b"
    """Name of the pipeline schedule."""

    chunks: int = pydantic.Field(default=1, gt=0)
    """Stages a pipeline rank: 2 for the V schedules, any number if interleaved, else 1."""

    recompute: Recompute = "none"
    """Which activations the backward pass computes again."""

    is_mixed: bool = False
    """Is each layer kept, computed again or moved to the host, as its rank's memory asks?"""

    sharding: Sharding = "optimizer"
    """What data ranks share."""

    @property
    def data(self) -> int:
        """Replicas that see different rows."""
        return self.gpus // (self.pipeline * self.context * self.tensor)

    @property
    def axes(self) -> tuple[int, ...]:
        """Sizes of pipeline, data, context, tensor and expert."""
        return self.pipeline, self.data, self.context, self.tensor, self.expert

    @property
    def has_fused_backward(self) -> bool:
        """Do gradients of inputs and of weights come at once?"""
        return self.schedule in ("1f1b", "interleaved")

    @property
    def dense_shards(self) -> int:
        """Ranks over which a dense weight's state can be cut, its tensor ranks aside."""
        return self.data * self.context

    @property
    def expert_shards(self) -> int:
        """Ranks over which an expert weight's state can be cut."""
        return self.data * self.context * self.tensor // self.expert

    @pydantic.model_validator(mode="after")
    def _check_axes(self) -> "Layout":
        inner = self.pipeline * self.context * self.tensor
        _check(self.gpus % inner == 0, "axes that divide the GPUs", f"{inner} and {self.gpus}")
        shared = self.gpus // self.pipeline
        _check(
            shared % self.expert == 0,
            f"`expert` to divide the {shared} ranks of a stage",
            self.expert,
        )
        _check(self.schedule in NAMES, f"a schedule among {', '.join(NAMES)}", self.schedule)
        stages = len(placement_of(self.schedule, self.pipeline, self.chunks))
        _check(
            stages == self.pipeline * self.chunks,
            f"`chunks` of {stages // self.pipeline} with the schedule {self.schedule}",
            self.chunks,
        )
        _check(
            self.recompute == "none" or self.has_fused_backward,
            "no recomputation with a split backward, which keeps inputs for the weight gradients",
            f"{self.schedule} with `recompute={self.recompute}`",
        )
        _check(
            not self.is_mixed or (self.recompute == "none" and self.has_fused_backward),
            "`is_mixed` alone and with a fused backward: a split one keeps what has come back",
            f"{self.schedule} with `recompute={self.recompute}`",
        )
        return self


def _check(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(
            expected=expected,
            found=str(found),
            fix="Change the layout, or let `fivefold plan` search one",
        )
