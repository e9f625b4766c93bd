"""How a training run is spread over processes: the sizes of the mesh's axes and what they share.

Not part of a stage's hash: a run may stop on one mesh and go on another. Axes from outer to inner
are pp, dp, fsdp, cp, tp, so that tensor ranks are neighbours; ep folds over the inner four. Ranks
along dp and fsdp see different rows; dp keeps whole weights, fsdp shards them.
"""

import math
from typing import Literal

import numpy as np
import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError
from fivefold.plan.make_schedule import NAMES

AXES = ("pp", "dp", "fsdp", "cp", "tp")
"""The axes that span the processes, outer to inner."""
DATA_AXES = ("dp", "fsdp")
"""The axes whose ranks see different rows."""


class ParallelConfig(Config):
    """Axes of the mesh; their product is the number of processes."""

    dp: int = pydantic.Field(default=1, gt=0)
    """Ranks with whole weights and different rows."""
    fsdp: int = pydantic.Field(default=1, gt=0)
    """Ranks with different rows among which every weight is sharded (ZeRO stage 3)."""
    tp: int = pydantic.Field(default=1, gt=0)
    """Ranks that share heads, feed-forward columns and the vocabulary."""
    cp: int = pydantic.Field(default=1, gt=0)
    """Ranks that share the tokens of a row."""
    pp: int = pydantic.Field(default=1, gt=0)
    """Ranks that share the layers."""
    ep: int = pydantic.Field(default=1, gt=0)
    """Ranks that share the experts of a layer; folds over dp, fsdp, cp and tp."""
    schedule: str = "1f1b"
    """Order of the pipeline's work: 1f1b, interleaved, zb_h1, zb_h2, zb_v, v_half, v_min or
    automatic."""
    chunks: int = pydantic.Field(default=2, gt=0)
    """Pipeline stages a rank of `interleaved`."""
    pieces: tuple[pydantic.PositiveInt, ...] | None = None
    """Pieces of each pipeline stage: embedding, layers, MTP layer and head; None: equal work."""
    mtp_stage: Literal["before_last", "last"] | None = None
    """Pipeline stage of the MTP layer, the one before the head's or the head's; None: by work."""
    deferred_bytes: int | None = pydantic.Field(default=None, gt=0)
    """Most bytes a pipeline stage keeps for weight gradients that are put off; None: no limit."""
    cp_order: Literal["balanced", "zigzag", "contiguous"] = "balanced"
    """How tokens are dealt along `cp`: by the work of each, first with last, or one run a row."""
    cp_form: Literal["latents", "heads"] = "latents"
    """What travels along `cp` for attention beside the latents: nothing, or queries and outputs."""
    ranks_per_node: int | None = pydantic.Field(default=None, gt=0)
    """Neighbours that share a node, for exchanges along `ep`, and of heads along `cp`, within nodes
    first; None: in one level."""
    zero: Literal[0, 1, 2, 3] | None = None
    """What data ranks shard: nothing (0), optimizer state (1), gradients too (2), weights too (3);
    None: 3 where `fsdp` is above 1, else 1."""
    bucket_bytes: int = pydantic.Field(default=2**25, gt=0)
    """Bytes of gradients or weights in one collective; a larger parameter is a bucket alone."""
    timeout_seconds: float = pydantic.Field(default=600, gt=0)
    """Longest wait for another rank within a training step or while a state is loaded; then the run
    ends and names it."""
    async_save: bool = True
    """Write resume states while training goes on; one process always waits."""

    @property
    def size(self) -> int:
        """Processes of the mesh."""
        return math.prod(self.axis_sizes.values())

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Size of each of `AXES`."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def data(self) -> int:
        """Ranks that see different rows."""
        return self.dp * self.fsdp

    @property
    def experts_cross_rows(self) -> bool:
        """Do ranks that share the experts of a layer see different rows?"""
        return self.cp * self.tp % self.ep != 0

    @property
    def keeps_step(self) -> bool:
        """Do ranks that see different rows exchange tokens or weights within a microbatch?"""
        return self.experts_cross_rows or self.zero_stage == 3

    @property
    def expert_shards(self) -> int:
        """Ranks along `fsdp` that hold the same experts; 1 where these do not come round evenly."""
        round_ = self.ep // math.gcd(self.ep, self.cp * self.tp)
        return 1 if self.fsdp % round_ else self.fsdp // round_

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, the default resolved."""
        return self.zero if self.zero is not None else (3 if self.fsdp > 1 else 1)

    @pydantic.model_validator(mode="after")
    def _check_axes(self) -> "ParallelConfig":
        inner = self.size // self.pp
        if inner % self.ep:
            raise ConfigError(
                expected=f"`ep` to divide the {inner} ranks of dp x fsdp x cp x tp",
                found=str(self.ep),
                fix="Choose a divisor: experts fold over the ranks that are there",
            )
        if self.fsdp > 1 and self.zero not in (None, 3):
            raise ConfigError(
                expected="`zero=3` with `fsdp` above 1, which shards the weights",
                found=f"`zero={self.zero}`",
                fix="Leave `zero` out, or spread the ranks over `dp` instead of `fsdp`",
            )
        if self.schedule not in NAMES:
            raise ConfigError(
                expected="the name of a pipeline schedule",
                found=f"`schedule={self.schedule}`",
                fix=f"Choose one of {', '.join(NAMES)}",
            )
        if self.zero == 3 and self.fsdp == 1:
            raise ConfigError(
                expected="`fsdp` above 1 with `zero=3`: weights are sharded along that axis",
                found="`fsdp=1`",
                fix=f"Set `fsdp={max(self.dp, 2)}` and `dp=1`, or `dp` to the number of copies",
            )
        return self

    def check_trained(self) -> None:
        """Refuse a stage of ZeRO that no training has on these axes.

        Raises:
            ConfigError: weights in parts, and stage 0.
        """
        parted = [f"`{axis}={size}`" for axis in ("tp", "ep") if (size := getattr(self, axis)) > 1]
        if self.zero_stage == 0 and parted:
            raise ConfigError(
                expected=f"`zero` 1 or 2, or `fsdp`, with {', '.join(parted)}",
                found="`zero=0`",
                fix="Leave `zero` out",
            )

    def check_world(self, processes: int) -> None:
        """Refuse another number of processes than the mesh has.

        Raises:
            ConfigError: they differ.
        """
        if processes == self.size:
            return
        axes = [f"{name}={size}" for name, size in self.axis_sizes.items() if size > 1]
        raise ConfigError(
            expected=f"{self.size} processes for {' x '.join(axes) or 'a mesh of one'}",
            found=str(processes),
            fix=f"Start with `torchrun --nproc-per-node {self.size} -m fivefold run ...`, or set "
            f"axes whose product is {processes}, for example `parallel.dp={processes}`",
        )


def rank_table(config: ParallelConfig, *axes: str) -> list[tuple[int, ...]]:
    """Return the groups along `axes` together: every rank in exactly one, all ranks alike ordered.

    `axes` are some of `AXES`; or alone one of `ep`, the ranks that share the experts of a layer,
    `edp`, those that hold the same experts, and `efsdp`, those of them along `fsdp`.
    """
    everywhere = {"edp": config.size // config.pp // config.ep, "ep": config.ep}
    shards, inner = config.expert_shards, config.cp * config.tp
    along = {"dp": config.dp, "efsdp": shards, "round": config.fsdp // shards, "inner": inner}
    folded = {"ep": everywhere, "edp": everywhere, "efsdp": along}
    sizes = config.axis_sizes
    if len(axes) == 1 and axes[0] in folded:
        sizes = {"pp": config.pp, **folded[axes[0]]}
    assert set(axes) <= set(sizes), f"no axes {axes}"
    names = list(sizes)
    ranks = np.arange(config.size).reshape([*sizes.values()])
    last = [index for index, name in enumerate(names) if name in axes]
    first = [index for index in range(len(names)) if index not in last]
    table = ranks.transpose(first + last).reshape(-1, math.prod(ranks.shape[i] for i in last))
    return [tuple(group) for group in table.tolist()]
