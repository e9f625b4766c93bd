"""The processes of a run as a mesh of named axes, and the groups along its axes.

`World` is what torchrun gave: rank, size, the store that all ranks reach. `Mesh` gives each set of
axes its `Group`, made when it is first asked for: all ranks must ask in the same order, which a
program that is the same on every rank does by itself. A group of one rank has no process group
behind it and its collectives do nothing, so that one process runs the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from fivefold.parallel.config import DATA_AXES, ParallelConfig, rank_table
from fivefold.parallel.ledger import Ledger

_NO_LIMIT = timedelta(days=30)


@dataclass(frozen=True)
class World:
    """The processes that were started together."""

    rank: int
    """This process, from 0."""
    size: int
    """All of them."""
    store: dist.Store | None
    """Keys and values that all processes see; None for one process."""
    device: torch.device
    """Where this process computes."""


ALONE = World(0, 1, None, torch.device("cpu"))
"""One process without torchrun."""


@dataclass(frozen=True)
class Group:
    """The ranks along some axes that this process is one of."""

    name: str
    """The axes, as `dp` or `dp+fsdp`."""
    ranks: tuple[int, ...]
    """Their ranks in the world, in the group's order."""
    rank: int
    """Place of this process among them."""
    handle: dist.ProcessGroup | None
    """torch's group; None where there is one rank."""
    ledger: Ledger
    """Where its collectives are recorded."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


def single(ledger: Ledger | None = None) -> Group:
    """Return a group of this process alone."""
    return Group("alone", (0,), 0, None, ledger or Ledger())


@dataclass
class Mesh:
    """The world in the shape of a config."""

    config: ParallelConfig = field(default_factory=ParallelConfig)
    """Sizes of the axes."""
    world: World = ALONE
    """The processes."""
    ledger: Ledger = field(default_factory=Ledger)
    """What this rank sent."""

    def __post_init__(self) -> None:
        self.config.check_world(self.world.size)
        self._groups: dict[tuple[str, ...], Group] = {}
        self._devices: dict[tuple[str, ...], DeviceMesh] = {}
        self.place = "at the start"
        """Where this rank is, for the report of a failure."""
        self.control: dist.ProcessGroup | None = None
        """Group of all ranks for waits as long as rank 0's own work takes; None: one process."""
        if self.world.size > 1:
            made = dist.new_group(backend="gloo", timeout=_NO_LIMIT)
            assert isinstance(made, dist.ProcessGroup)
            self.control = made

    @property
    def rank(self) -> int:
        """This process in the world."""
        return self.world.rank

    @property
    def size(self) -> int:
        """Processes in the world."""
        return self.world.size

    @property
    def is_first(self) -> bool:
        """Is this the rank that owns the run directory?"""
        return self.rank == 0

    def group(self, *axes: str) -> Group:
        """Return this rank's group along `axes` together (see `config.rank_table`)."""
        if axes not in self._groups:
            self._groups[axes] = self.make_group("+".join(axes), rank_table(self.config, *axes))
        return self._groups[axes]

    def make_group(self, name: str, table: Sequence[Sequence[int]]) -> Group:
        """Make the groups of `table`, each rank in exactly one; return this rank's."""
        mine, handle = (self.rank,), None
        for ranks in table:
            limit = timedelta(seconds=self.config.timeout_seconds)
            made = dist.new_group(list(ranks), timeout=limit) if len(ranks) > 1 else None
            if self.rank in ranks:
                mine, handle = tuple(ranks), made
        assert handle is None or isinstance(handle, dist.ProcessGroup)
        return Group(name, mine, mine.index(self.rank), handle, self.ledger)

    @property
    def data(self) -> Group:
        """The ranks that see different rows and otherwise do the same."""
        return self.group(*DATA_AXES)

    @property
    def everyone(self) -> Group:
        """The ranks that see different rows or different tokens of them."""
        return self.data if self.config.cp == 1 else self.group(*DATA_AXES, "cp")

    def device_mesh(self, *axes: str) -> DeviceMesh:
        """Return torch's mesh over these single axes, for DTensor and FSDP2.

        At least one of them must be larger than 1.
        """
        if axes not in self._devices:
            self._devices[axes] = self._make_device_mesh(axes)
        return self._devices[axes]

    def flat_device_mesh(self, group: Group) -> DeviceMesh:
        """Return torch's one-axis mesh of a group of several ranks."""
        key = (f"flat {group.name}",)
        if key not in self._devices:
            assert group.handle is not None, f"{group.name} has one rank"
            kind = self.world.device.type
            self._devices[key] = DeviceMesh.from_group(
                group.handle, kind, mesh_dim_names=(group.name,)
            )
        return self._devices[key]

    def crossed_device_mesh(self, outer: str, inner: str) -> DeviceMesh:
        """Return torch's mesh of two axes of any order, both larger than 1.

        Its rows are the groups along `inner` of the ranks of this one's group along `outer`.
        """
        key = (f"{outer} x {inner}",)
        if key not in self._devices:
            groups = self.group(outer), self.group(inner)
            table = rank_table(self.config, inner)
            rows = [next(r for r in table if rank in r) for rank in groups[0].ranks]
            self._devices[key] = DeviceMesh.from_group(
                [group.handle for group in groups],  # pyright: ignore[reportArgumentType]
                self.world.device.type,
                mesh=torch.tensor(rows),
                mesh_dim_names=(outer, inner),
            )
        return self._devices[key]

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank, after as long a wait as rank 0 needs."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def _make_device_mesh(self, axes: tuple[str, ...]) -> DeviceMesh:
        groups = [self.group(axis) for axis in axes]
        kind = self.world.device.type
        if len(groups) == 1:
            (group,) = groups
            assert group.handle is not None, f"axis {axes[0]} has one rank"
            return DeviceMesh.from_group(group.handle, kind, mesh_dim_names=axes)
        whole = next(t for t in rank_table(self.config, *axes) if self.rank in t)
        sizes = [group.size for group in groups]
        handles = [group.handle for group in groups]
        assert all(handle is not None for handle in handles), f"axes {axes} of one rank"
        table = torch.tensor(whole).view(sizes)
        return DeviceMesh.from_group(handles, kind, mesh=table, mesh_dim_names=axes)  # pyright: ignore[reportArgumentType]
