"""Muon over row shards: each matrix is made whole on one rank only, its owner (GLM-5 report 2.4).

Momentum, decay and the update itself are elementwise and stay with the rows. Only Newton-Schulz
needs whole matrices: a matrix whose rows all lie on one rank (an expert, often a head) is that
rank's own and costs no communication; any other is sent to its owner in one all-to-all and its
direction comes back in a second. Against gathering everything everywhere, a rank sends
2/ranks of the bytes and computes 1/ranks of the products. Owners are chosen by longest processing
time first over the products' FLOPs, and appear nowhere in the state: momentum is stored by rows,
as every other tensor.

The all-to-all of a bucket of matrices runs while the bucket before is computed.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fivefold.parallel.collectives import start_all_to_all
from fivefold.parallel.mesh import Group
from fivefold.parallel.row_shard import RowShard


class Matrix(NamedTuple):
    """One matrix to orthogonalise: rows of a parameter seen as [all dims but the last, last]."""

    name: str
    """The parameter."""
    ranges: tuple[tuple[int, int], ...]
    """Its rows, ascending."""
    columns: int
    """Length of a row."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(end - begin for begin, end in self.ranges)

    @property
    def flops(self) -> float:
        """FLOPs of one Newton-Schulz iteration: two products with the long side, one without."""
        short, long = sorted((self.rows, self.columns))
        return 4 * short * short * long + 2 * short**3


@dataclass(frozen=True)
class MuonRule:
    """The numbers of the update; see `train.muon` for what they mean."""

    momentum: float
    nesterov: bool
    weight_decay: float
    orthogonalise: Callable[[Tensor], Tensor]
    """Directions of matrices [G, M, N]."""
    scale: Callable[[int, int], float]
    """Factor on the direction of a matrix of M x N."""


class _Piece(NamedTuple):
    """Rows of a matrix that one rank holds, counted in that rank's rows."""

    begin: int
    end: int


@dataclass(frozen=True)
class _Task:
    """A matrix, where its rows are, and who computes it."""

    matrix: Matrix
    owner: int
    pieces: tuple[tuple[_Piece, ...], ...]
    """Of each rank."""

    @property
    def is_local(self) -> bool:
        """Does its owner hold all of it?"""
        return all(not held or rank == self.owner for rank, held in enumerate(self.pieces))

    def held(self, rank: int) -> int:
        """Return the elements that a rank holds."""
        rows = sum(piece.end - piece.begin for piece in self.pieces[rank])
        return rows * self.matrix.columns


def plan_owners(
    matrices: Sequence[Matrix], shards: Mapping[str, RowShard], ranks: int
) -> list[_Task]:
    """Find each matrix's pieces and choose its owner; the same on every rank."""
    load = [0.0] * ranks
    owners: dict[Matrix, int] = {}
    pieces = {m: _find_pieces(m, shards[m.name], ranks) for m in matrices}
    shared = []
    for matrix in matrices:
        holders = [rank for rank in range(ranks) if pieces[matrix][rank]]
        if len(holders) == 1:
            owners[matrix] = holders[0]
            load[holders[0]] += matrix.flops
        else:
            shared.append(matrix)
    for matrix in sorted(shared, key=lambda matrix: -matrix.flops):
        owners[matrix] = load.index(min(load))
        load[owners[matrix]] += matrix.flops
    return [_Task(matrix, owners[matrix], pieces[matrix]) for matrix in matrices]


def imbalance(tasks: Sequence[_Task], ranks: int) -> float:
    """Return the busiest owner's FLOPs over the mean."""
    load = [sum(t.matrix.flops for t in tasks if t.owner == rank) for rank in range(ranks)]
    return max(load) * ranks / sum(load)


def sent_elements(tasks: Sequence[_Task], rank: int) -> int:
    """Return the elements that a rank sends in both exchanges of a step."""
    gradients = sum(task.held(rank) for task in tasks if task.owner != rank)
    ranks = range(len(tasks[0].pieces)) if tasks else ()
    others = [r for r in ranks if r != rank]
    return gradients + sum(t.held(r) for t in tasks if t.owner == rank for r in others)


class OwnedMuon:
    """Muon over this rank's rows; parameters without gradient are left alone in a step."""

    def __init__(
        self,
        rows: Mapping[str, nn.Parameter],
        shapes: Mapping[str, tuple[int, ...]],
        matrices: Sequence[Matrix],
        group: Group,
        rule: MuonRule,
        *,
        bucket_bytes: int,
    ) -> None:
        """Take `rows` of parameters of `shapes`, cut as `RowShard` does over `group`.

        `matrices` cover every row once, the same on all ranks.
        """
        self.momenta = {name: torch.zeros_like(value) for name, value in rows.items()}
        self._rows = dict(rows)
        self._group = group
        self._rule = rule
        shards = {name: RowShard(shapes[name], group.size, group.rank) for name in rows}
        self.tasks = plan_owners(matrices, shards, group.size)
        self._bucket_bytes = bucket_bytes

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the rows from their gradients at this learning rate."""
        rule = self._rule
        active = {name: value for name, value in self._rows.items() if value.grad is not None}
        if not active:
            return
        gradients = [value.grad for value in active.values() if value.grad is not None]
        momenta = [self.momenta[name] for name in active]
        torch._foreach_lerp_(momenta, gradients, 1 - rule.momentum)
        mixed = torch._foreach_lerp(gradients, momenta, rule.momentum) if rule.nesterov else momenta
        flat = {
            name: part.reshape(-1, part.shape[-1]) for name, part in zip(active, mixed, strict=True)
        }
        tasks = [task for task in self.tasks if task.matrix.name in active]
        torch._foreach_mul_(list(active.values()), 1 - lr * rule.weight_decay)
        self._run(tasks, flat, lr)

    def _run(self, tasks: Sequence[_Task], mixed: Mapping[str, Tensor], lr: float) -> None:
        """Send, compute and return bucket by bucket, one bucket's sending ahead."""
        buckets = self._fill_buckets(tasks, mixed)
        sending = None
        for bucket, following in itertools.zip_longest(buckets, buckets[1:]):
            sent = sending if sending is not None else self._send(bucket, mixed)
            sending = self._send(following, mixed) if following is not None else None
            directions = self._compute(bucket, mixed, _wait(sent))
            self._apply(bucket, directions, lr)

    def _fill_buckets(
        self, tasks: Sequence[_Task], mixed: Mapping[str, Tensor]
    ) -> list[list[_Task]]:
        """Cut the tasks, in order, into buckets of at most `bucket_bytes` of matrices."""
        buckets: list[list[_Task]] = [[]]
        filled = 0
        for task in tasks:
            matrix = task.matrix
            size = matrix.rows * matrix.columns * mixed[matrix.name].element_size()
            if buckets[-1] and filled + size > self._bucket_bytes:
                buckets.append([])
                filled = 0
            buckets[-1].append(task)
            filled += size
        return buckets

    def _send(self, tasks: list[_Task], mixed: Mapping[str, Tensor]) -> "_Exchange":
        """Start to send this rank's pieces of other ranks' matrices."""
        me, group = self._group.rank, self._group
        like = mixed[tasks[0].matrix.name]
        shared = [task for task in tasks if not task.is_local]
        outgoing = [
            _rows_of(mixed[task.matrix.name], task.pieces[me])
            for rank in range(group.size)
            for task in shared
            if task.owner == rank and rank != me
        ]
        sent_counts = [
            sum(t.held(me) for t in shared if t.owner == rank) if rank != me else 0
            for rank in range(group.size)
        ]
        mine = [task for task in shared if task.owner == me]
        received_counts = [
            sum(t.held(rank) for t in mine) if rank != me else 0 for rank in range(group.size)
        ]
        return _start(outgoing, sent_counts, received_counts, group, like, bool(shared))

    def _compute(
        self, tasks: list[_Task], mixed: Mapping[str, Tensor], received: list[Tensor]
    ) -> dict[Matrix, Tensor]:
        """Orthogonalise the matrices that this rank owns; return its rows of all directions."""
        me, group = self._group.rank, self._group
        places = [0] * group.size
        own = [task for task in tasks if task.owner == me]
        by_shape: dict[tuple[int, int], list[tuple[_Task, Tensor]]] = defaultdict(list)
        for task in own:
            parts = []
            for rank in range(group.size):
                if rank == me:
                    parts.append(_rows_of(mixed[task.matrix.name], task.pieces[me]))
                else:
                    parts.append(_next(received, places, rank, task))
            matrix = torch.cat(parts)
            by_shape[task.matrix.rows, task.matrix.columns].append((task, matrix))
        whole: dict[Matrix, Tensor] = {}
        for found in by_shape.values():
            directions = self._rule.orthogonalise(torch.stack([matrix for _, matrix in found]))
            whole |= {
                task.matrix: direction
                for (task, _), direction in zip(found, directions, strict=True)
            }
        return self._return(tasks, whole, mixed[tasks[0].matrix.name])

    def _return(
        self, tasks: list[_Task], whole: Mapping[Matrix, Tensor], like: Tensor
    ) -> dict[Matrix, Tensor]:
        """Send directions back to those who hold the rows; return this rank's rows of each."""
        me, group = self._group.rank, self._group
        shared = [task for task in tasks if not task.is_local]
        mine = [task for task in shared if task.owner == me]
        outgoing = [
            whole[task.matrix][_span(task, rank)]
            for rank in range(group.size)
            for task in mine
            if rank != me
        ]
        sent_counts = [
            sum(t.held(rank) for t in mine) if rank != me else 0 for rank in range(group.size)
        ]
        received_counts = [
            sum(t.held(me) for t in shared if t.owner == rank) if rank != me else 0
            for rank in range(group.size)
        ]
        received = _wait(_start(outgoing, sent_counts, received_counts, group, like, bool(shared)))
        places = [0] * group.size
        directions = {}
        for task in tasks:
            if task.owner == me:
                directions[task.matrix] = whole[task.matrix][_span(task, me)]
            elif not task.is_local:
                directions[task.matrix] = _next(received, places, task.owner, task, holder=me)
        return directions

    def _apply(self, tasks: list[_Task], directions: Mapping[Matrix, Tensor], lr: float) -> None:
        """Move this rank's rows along their directions."""
        by_scale: dict[float, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for task in tasks:
            matrix = task.matrix
            held = task.pieces[self._group.rank]
            if not held:
                continue
            weight = self._rows[matrix.name].data
            weight = weight.view(-1, weight.shape[-1])
            counts = [piece.end - piece.begin for piece in held]
            weights, parts = by_scale[self._rule.scale(matrix.rows, matrix.columns)]
            weights += [weight[piece.begin : piece.end] for piece in held]
            parts += directions[matrix].split(counts)
        for scale, (weights, parts) in by_scale.items():
            torch._foreach_add_(weights, parts, alpha=-lr * scale)


class _Exchange(NamedTuple):
    """An all-to-all that runs."""

    received: list[Tensor]
    """From each rank, flat."""
    work: dist.Work | None


def _start(
    outgoing: list[Tensor],
    sent_counts: list[int],
    received_counts: list[int],
    group: Group,
    like: Tensor,
    is_needed: bool,
) -> _Exchange:
    if not is_needed:
        return _Exchange([like.new_empty(0)] * group.size, None)
    flat = [part.reshape(-1) for part in outgoing]
    sent = torch.cat(flat) if flat else like.new_empty(0)
    received, work = start_all_to_all(sent, sent_counts, received_counts, group)
    return _Exchange(list(received.split(received_counts)), work)


def _wait(exchange: _Exchange) -> list[Tensor]:
    if exchange.work is not None:
        exchange.work.wait()
    return exchange.received


def _next(
    received: list[Tensor], places: list[int], rank: int, task: _Task, holder: int | None = None
) -> Tensor:
    """Take the next rows [rows, columns] of what came from `rank`; they are `holder`'s."""
    length = task.held(rank if holder is None else holder)
    part = received[rank][places[rank] : places[rank] + length]
    places[rank] += length
    return part.view(-1, task.matrix.columns)


def _rows_of(tensor: Tensor, pieces: Sequence[_Piece]) -> Tensor:
    """Return the rows of some pieces, in order, as [rows, columns]."""
    if len(pieces) == 1:
        return tensor[pieces[0].begin : pieces[0].end]
    return torch.cat([tensor[piece.begin : piece.end] for piece in pieces] or [tensor[:0]])


def _span(task: _Task, rank: int) -> slice:
    """Return which rows of the whole matrix a rank holds: ranks hold them in their order."""
    rows = [task.held(r) // task.matrix.columns for r in range(len(task.pieces))]
    begin = sum(rows[:rank])
    return slice(begin, begin + rows[rank])


def _find_pieces(matrix: Matrix, shard: RowShard, ranks: int) -> tuple[tuple[_Piece, ...], ...]:
    """Return which rows of its own each rank holds of a matrix."""
    # A row of the first dim is several rows of the matrix view where there are more dims.
    inner = shard.row_size // matrix.columns
    found = []
    for rank in range(ranks):
        rows = shard.rows_of(rank)
        begin, end = rows.start * inner, rows.stop * inner
        cut = ((max(begin, low), min(end, high)) for low, high in matrix.ranges)
        found.append(tuple(_Piece(low - begin, high - begin) for low, high in cut if low < high))
    return tuple(found)
