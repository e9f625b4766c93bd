"""Which rows of a parameter a rank holds, and flat buffers that carry many parameters at once.

A parameter is cut along its first dim into equal runs of ceil(rows / ranks) rows; the last runs may
be short or empty. This is torch's own `Shard(0)`, so that ZeRO 1 and 2, FSDP2 and the distributed
checkpoint mean the same rows, and a state saved on one mesh loads on any other. A flat buffer holds
the runs of several parameters rank by rank, each padded to the length of a full run: one collective
moves all of them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowShard:
    """One rank's rows of a parameter."""

    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    ranks: int
    """Ranks that share it."""
    rank: int
    """Place of this rank among them."""

    @property
    def run(self) -> int:
        """Rows of a full run."""
        return -(-self.shape[0] // self.ranks)

    @property
    def row_size(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[1:])

    def rows_of(self, rank: int) -> slice:
        """Return the rows that a rank holds."""
        begin = min(rank * self.run, self.shape[0])
        return slice(begin, min(begin + self.run, self.shape[0]))

    @property
    def rows(self) -> slice:
        """The rows of this rank."""
        return self.rows_of(self.rank)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of this rank's part."""
        return (self.rows.stop - self.rows.start, *self.shape[1:])


class Bucket:
    """Some parameters whose runs travel together."""

    def __init__(self, shards: Mapping[str, RowShard], like: Tensor) -> None:
        """Lay the runs out one after the other; `like` gives dtype and device."""
        self.shards = dict(shards)
        self.ranks = next(iter(self.shards.values())).ranks
        self._like = like
        self._begin: dict[str, int] = {}
        end = 0
        for name, shard in self.shards.items():
            self._begin[name] = end
            end += shard.run * shard.row_size
        self.run_size = end
        """Elements of one rank's part."""

    @property
    def whole_bytes(self) -> int:
        """Bytes of the buffer of all ranks, padding included."""
        return self.ranks * self.run_size * self._like.element_size()

    def empty_whole(self) -> Tensor:
        """Return an uninitialised buffer [ranks, run_size]."""
        return self._like.new_empty(self.ranks, self.run_size)

    def empty_run(self) -> Tensor:
        """Return an uninitialised buffer [run_size] of one rank."""
        return self._like.new_empty(self.run_size)

    def pack(self, whole: Tensor, name: str, tensor: Tensor | None) -> None:
        """Write a whole parameter-shaped tensor (None: zeros) into its place, padding included."""
        shard, begin = self.shards[name], self._begin[name]
        place = whole[:, begin : begin + shard.run * shard.row_size]
        if tensor is None or shard.shape[0] != self.ranks * shard.run:
            place.zero_()
        if tensor is None:
            return
        for rank in range(self.ranks):
            part = tensor[shard.rows_of(rank)]
            place[rank, : part.numel()].copy_(part.reshape(-1))

    def unpack(self, whole: Tensor, name: str, tensor: Tensor) -> None:
        """Write what other ranks hold of a parameter from the buffer into `tensor`."""
        shard, begin = self.shards[name], self._begin[name]
        for rank in range(self.ranks):
            part = tensor[shard.rows_of(rank)]
            if rank != shard.rank and part.numel():
                part.copy_(whole[rank, begin : begin + part.numel()].view(part.shape))

    def local(self, run: Tensor, name: str) -> Tensor:
        """Return this rank's rows of a parameter as a view of its run buffer."""
        shard, begin = self.shards[name], self._begin[name]
        return run[begin : begin + math.prod(shard.local_shape)].view(shard.local_shape)

    def padding(self, run: Tensor, name: str) -> Tensor:
        """Return what follows this rank's rows of a parameter up to a full run."""
        shard, begin = self.shards[name], self._begin[name]
        return run[begin + math.prod(shard.local_shape) : begin + shard.run * shard.row_size]


def make_buckets(
    tensors: Mapping[str, Tensor], names: Iterable[str], ranks: int, rank: int, most_bytes: int
) -> list[Bucket]:
    """Fill buckets of at most `most_bytes` with parameters of one dtype and device, in order."""
    buckets: list[Bucket] = []
    filled: dict[str, RowShard] = {}
    size, like = 0, None

    def close() -> None:
        if filled and like is not None:
            buckets.append(Bucket(filled, like))
            filled.clear()

    for name in names:
        tensor = tensors[name].detach()
        shard = RowShard(tuple(tensor.shape), ranks, rank)
        length = ranks * shard.run * shard.row_size * tensor.element_size()
        same = like is not None and (like.dtype, like.device) == (tensor.dtype, tensor.device)
        if not same or size + length > most_bytes:
            close()
            size = 0
        filled[name] = shard
        size, like = size + length, tensor
    close()
    return buckets


def padded_elements(shapes: Sequence[Sequence[int]], ranks: int) -> int:
    """Return the elements of the run buffers of one rank for parameters of these shapes."""
    return sum(-(-shape[0] // ranks) * math.prod(shape[1:]) for shape in shapes)


def same_everywhere(flags: Sequence[bool], device: torch.device) -> Tensor:
    """Return flags as a tensor for a maximum over ranks."""
    return torch.tensor([int(flag) for flag in flags], dtype=torch.int32, device=device)
