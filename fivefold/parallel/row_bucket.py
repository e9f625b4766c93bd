"""Gradients of parts on their way to the ranks that update their rows.

A rank holds a box of each parameter and updates a run of its rows (`part`, `row_shard`). A buffer
has, rank by rank, what this one holds of that rank's rows; one all-to-all brings each rank what all
others hold of its own, which it adds up in the order of ranks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from fivefold.parallel.collectives import start_all_to_all
from fivefold.parallel.mesh import Group
from fivefold.parallel.part import Box
from fivefold.parallel.row_shard import RowShard


class Common(NamedTuple):
    """What one rank's part and another's rows have in common, as seen from both."""

    in_part: slice
    in_rows: tuple[slice, ...]
    shape: tuple[int, ...]


def common(box: Box, shard: RowShard, updater: int) -> Common:
    """Return what the part at `box` shares with the rows that a rank updates."""
    rows = shard.rows_of(updater)
    begin = max(rows.start, box.rows.start)
    end = max(begin, min(rows.stop, box.rows.stop))
    in_part = slice(begin - box.rows.start, end - box.rows.start)
    in_rows = slice(begin - rows.start, end - rows.start)
    if box.columns is None:
        return Common(in_part, (in_rows,), (end - begin, *shard.shape[1:]))
    columns = box.columns.stop - box.columns.start
    shape = end - begin, columns, *shard.shape[2:]
    return Common(in_part, (in_rows, box.columns), shape)


class RowBucket:
    """Some parameters whose gradients travel together; a `gradient_stream.StreamedBucket`."""

    def __init__(
        self,
        shards: Mapping[str, RowShard],
        boxes: Sequence[Mapping[str, Box]],
        group: Group,
        like: Tensor,
    ) -> None:
        """Lay out the pieces; `boxes` are those of each rank, `like` gives dtype and device."""
        self._shards, self._boxes = dict(shards), boxes
        self._group, self._like = group, like
        self.names = tuple(self._shards)
        """The parameters."""
        me, ranks = group.rank, range(group.size)
        self._out, self.sent_counts = self._lay_out([(me, rank) for rank in ranks])
        """Elements for each rank."""
        self._in, self.received_counts = self._lay_out([(rank, me) for rank in ranks])
        """Elements from each rank."""

    def piece(self, name: str, holder: int, updater: int) -> Common:
        """Return what the part of one rank shares with the rows of another."""
        return common(self._boxes[holder][name], self._shards[name], updater)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the buffer of what this rank holds."""
        return sum(self.sent_counts) * self._like.element_size()

    def empty_whole(self) -> Tensor:
        """Return that buffer, uninitialised."""
        return self._like.new_empty(sum(self.sent_counts))

    def pack(self, whole: Tensor, name: str, tensor: Tensor | None) -> None:
        """Write this rank's part of a gradient (None: zeros) into its places."""
        for run, piece in self._out[name]:
            place = whole[run].view(piece.shape)
            if tensor is None:
                place.zero_()
            else:
                place.copy_(tensor[piece.in_part])

    def start(self, whole: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Begin to send each rank what this one holds of its rows."""
        return start_all_to_all(whole, self.sent_counts, self.received_counts, self._group)

    def add(self, total: Tensor | None, arrived: Tensor) -> Tensor:
        """Add what the ranks hold of this one's rows to a flat `total`, None being nothing."""
        if total is None:
            shapes = (self._shards[name].local_shape for name in self.names)
            total = self._like.new_zeros(sum(map(math.prod, shapes)))
        for name, rows in self.rows(total).items():
            for run, piece in self._in[name]:
                rows[piece.in_rows].add_(arrived[run].view(piece.shape))
        return total

    def rows(self, total: Tensor) -> dict[str, Tensor]:
        """Return this rank's rows of each parameter as views of a flat sum."""
        shapes = {name: shard.local_shape for name, shard in self._shards.items()}
        runs = total.split([math.prod(shape) for shape in shapes.values()])
        return {n: run.view(shape) for (n, shape), run in zip(shapes.items(), runs, strict=True)}

    def _lay_out(
        self, pairs: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, list[tuple[slice, Common]]], list[int]]:
        """Return the places of each parameter's pieces in a buffer, and elements a rank.

        `pairs` are who holds and who updates.
        """
        places: dict[str, list[tuple[slice, Common]]] = {name: [] for name in self.names}
        begin, counts = 0, []
        for holder, updater in pairs:
            first = begin
            for name in self.names:
                piece = self.piece(name, holder, updater)
                end = begin + math.prod(piece.shape)
                if end > begin:
                    places[name].append((slice(begin, end), piece))
                begin = end
            counts.append(begin - first)
        return places, counts
