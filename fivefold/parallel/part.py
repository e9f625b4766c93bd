"""Which part of each parameter a rank holds, and parameters of which that part alone is here.

Heads, columns, vocabulary and experts are cut by `tp` and `ep`, what is left by rows where weights
are sharded along `fsdp`. All of it follows from name, shape and config: a rank works out its part
before any weight exists, and every other rank's too.

Surprise: routers and index heads are held by all ranks along `fsdp` until `parallel.fsdp` shards
the model. In a lower precision they stay whole, and which precision it is nobody knows before.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.parallel.config import ParallelConfig, rank_table
from fivefold.parallel.row_shard import RowShard

_BY_ROWS = ("q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
_BY_COLUMNS = ("o_proj", "down_proj")
_SHARDED_LATE = (".mlp.gate.weight", ".indexer.weights_proj.weight")
"""Ends of the names of what compares scores."""


@dataclass(frozen=True)
class Cut:
    """The part of a parameter that a rank holds."""

    axis: str
    """`tp` or `ep`."""
    dim: int
    """Dim that is cut."""
    begin: int
    """First of its places that the rank holds."""
    end: int
    """Behind the last."""

    def of(self, whole: Tensor) -> Tensor:
        """Return the part as a view."""
        return whole.narrow(self.dim, self.begin, self.end - self.begin)


class Box(NamedTuple):
    """Where a rank's part lies in the whole parameter."""

    rows: slice
    """Along the first dim."""
    columns: slice | None
    """Along the second, None being all."""

    @property
    def place(self) -> tuple[slice, ...]:
        """The part as an index of the whole."""
        return (self.rows,) if self.columns is None else (self.rows, self.columns)

    def of(self, whole: Tensor) -> Tensor:
        """Return the part as a view."""
        return whole[self.place]

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Is the part all of a parameter of this shape?"""
        return self.columns is None and self.rows == slice(0, shape[0])

    def run(self, ranks: int, rank: int) -> "Box":
        """Return the rows that one of the ranks holds among which this part is shared."""
        begin = self.rows.start
        rows = RowShard((self.rows.stop - begin,), ranks, rank).rows
        return self._replace(rows=slice(begin + rows.start, begin + rows.stop))


def cut_of(name: str, shape: tuple[int, ...], config: ParallelConfig, rank: int) -> Cut | None:
    """Return which part of the named parameter a rank of the world holds; None: all of it."""
    module, kind = name.split(".")[-2:]
    axis, dim = "tp", 0
    if module == "experts":
        axis = "ep"
    elif kind == "weight" and module in _BY_COLUMNS:
        dim = 1
    elif kind != "weight" or module not in _BY_ROWS:
        return None
    size = config.ep if axis == "ep" else config.tp
    if size == 1:
        return None
    rows = RowShard((shape[dim],), size, _place_along(config, axis, rank)).rows  # pyright: ignore[reportArgumentType]  # frozen
    return Cut(axis, dim, rows.start, rows.stop)


@functools.lru_cache(maxsize=2**16)
def _place_along(config: ParallelConfig, axis: str, rank: int) -> int:
    """Return the place of a rank of the world in its group; asked for every parameter."""
    return next(table.index(rank) for table in rank_table(config, axis) if rank in table)


def box_of(cut: Cut | None, shape: tuple[int, ...]) -> Box:
    """Return where a cut lies."""
    if cut is None:
        return Box(slice(0, shape[0]), None)
    run = slice(cut.begin, cut.end)
    return Box(run, None) if cut.dim == 0 else Box(slice(0, shape[0]), run)


def held_box(name: str, shape: tuple[int, ...], config: ParallelConfig, rank: int) -> Box:
    """Return the part of a parameter that a rank of the world builds or reads."""
    box = box_of(cut_of(name, shape, config, rank), shape)
    if config.zero_stage != 3 or is_sharded_late(name):
        return box
    axis = "efsdp" if ".experts." in name else "fsdp"
    ranks = config.expert_shards if axis == "efsdp" else config.fsdp
    return box.run(ranks, _place_along(config, axis, rank))  # pyright: ignore[reportArgumentType]  # frozen


def is_sharded_late(name: str) -> bool:
    """Do all ranks along `fsdp` hold the parameter until the model is sharded?"""
    return name.endswith(_SHARDED_LATE)


def part_of(held: Tensor, outer: Box, inner: Box) -> Tensor:
    """Return what a rank with the part `outer` has at `inner`, fewer rows of the same columns.

    A copy, unless they are the same part.
    """
    if inner == outer:
        return held
    begin, end = inner.rows.start - outer.rows.start, inner.rows.stop - outer.rows.start
    assert inner.columns == outer.columns, "parts are shared by rows"
    assert 0 <= begin <= end <= len(held), f"{inner} is not within {outer}"
    return held[begin:end].clone()


class HeldPart(nn.Parameter):
    """A parameter of which this rank holds a part: whole in shape and flag, on the meta device."""

    box: Box
    """Where the part lies."""
    held: Tensor | None
    """The part; None once it was taken."""

    def __new__(
        cls, shape: tuple[int, ...], box: Box, held: Tensor, *, requires_grad: bool = True
    ) -> "HeldPart":
        """Present `held`, the part `box`, as a parameter of this shape."""
        whole = torch.empty(shape, dtype=held.dtype, device="meta")
        part = super().__new__(cls, whole, requires_grad)
        part.box, part.held = box, held
        return part

    def __init__(self, *_: object, **__: object) -> None:
        """Do nothing: the parameter is made."""


@torch.no_grad()
def take_part(model: nn.Module, name: str, box: Box) -> Tensor:
    """Move a part of a parameter out of the model, which keeps shape and flag without bytes."""
    parameter = model.get_parameter(name)
    if isinstance(parameter, HeldPart):
        held = parameter.held
        assert held is not None, f"{name} was taken before"
        # An optimizer that is never stepped may know the parameter.
        parameter.held = None
        part = part_of(held, parameter.box, box)
    else:
        assert not parameter.is_meta, f"{name} is not here"
        is_whole = box.is_whole(tuple(parameter.shape))
        part = parameter.data if is_whole else box.of(parameter.data).clone()
    empty_parameter(model, name)
    return part


def empty_parameter(model: nn.Module, name: str) -> None:
    """Leave shape and flag of a parameter without bytes, whoever knows it."""
    parameter = model.get_parameter(name)
    if type(parameter) is nn.Parameter and parameter.is_meta:
        return
    replace_parameter(model, name, torch.empty_like(parameter.data, device="meta"))
    if not parameter.is_meta:
        parameter.data = parameter.data.new_empty(0)


def replace_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor of any shape and device in the place of a parameter; its flag stays."""
    needs = model.get_parameter(name).requires_grad
    put_parameter(model, name, nn.Parameter(value, requires_grad=needs))


def put_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter in the place of another."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)
