"""Between a model in parts and the optimizer: gradients summed into rows, updated rows sent back.

However a parameter is cut for computing, by heads, columns, vocabulary or experts, the optimizer
holds it by rows, as at ZeRO stage 1: `RowShard` over all ranks of the mesh's inner axes. A saved
state, distributed Muon and the norm over all ranks are then those of plain data parallelism, and a
state loads on any mesh.

Both ways are one all-to-all a bucket. A rank sends each other rank what it has of that rank's rows,
and nobody receives what a rank does not have: gradients of experts come from the ranks that hold
them alone (`edp`), those of heads from the ranks with these heads, replicated ones from all. The
receiver adds up in the order of ranks, so that sums do not depend on timing.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.errors import ConfigError
from fivefold.parallel.collectives import all_reduce, all_to_all
from fivefold.parallel.mesh import Group
from fivefold.parallel.row_shard import RowShard, same_everywhere
from fivefold.parallel.tensor import Cut, SplitModel
from fivefold.parallel.zero import as_global

INNER_AXES = ("dp", "fsdp", "cp", "tp")
"""The axes over which rows are shared."""


class _Box(NamedTuple):
    """What one rank's cut and another's rows have in common, as seen from both."""

    in_part: tuple[slice, ...]
    in_rows: tuple[slice, ...]


class SplitRows:
    """The rows of a `SplitModel` that this rank updates; a `parallel.zero.Sharding`."""

    def __init__(self, split: SplitModel) -> None:
        """Take the rows of the parameters that `split` trains.

        Raises:
            ConfigError: a ZeRO stage other than 1.
        """
        if split.mesh.config.zero_stage != 1:
            raise ConfigError(
                expected="`parallel.zero=1` with `tp` or `ep`, and no `fsdp`",
                found=f"stage {split.mesh.config.zero_stage}",
                fix="Leave `zero` out, and spread the other ranks over `dp`",
            )
        mesh = split.mesh
        self._mesh = mesh
        self.shard_group: Group = mesh.group(*INNER_AXES)
        self.data_group, self.everyone = mesh.data, mesh.everyone
        # Ranks that exchange tokens have to step through as many microbatches as each other.
        self.takes_uneven_rows = not mesh.config.experts_cross_rows
        named = {name: split.model.get_parameter(name) for name in split.shapes}
        self._weights = {name: value for name, value in named.items() if value.requires_grad}
        self.shapes = {name: split.shapes[name] for name in self._weights}
        group = self.shard_group
        self._shards = {
            name: RowShard(shape, group.size, group.rank) for name, shape in self.shapes.items()
        }
        self.rows = {
            name: nn.Parameter(self._weights[name].data.new_empty(shard.local_shape))
            for name, shard in self._shards.items()
        }
        self._cuts = [split.cuts_of_rank(rank) for rank in group.ranks]
        # Of whole parameters: parts may differ in size from rank to rank.
        sizes = {
            name: math.prod(shape) * self._weights[name].element_size()
            for name, shape in self.shapes.items()
        }
        self._buckets = list(_fill(sizes, mesh.config.bucket_bytes))
        self.take_over()

    @torch.no_grad()
    def take_over(self) -> None:
        """Take the rows from the weights, which a saved state may just have filled."""
        me = self.shard_group.rank
        ranks = range(self.shard_group.size)
        for bucket in self._buckets:
            first = {name: self._first_holders(name) for name in bucket}
            outgoing = [
                [
                    self._weights[n].data[self._box(n, me, t).in_part]
                    for n in bucket
                    if me in first[n]
                ]
                for t in ranks
            ]
            parts = [
                [self.rows[n].data[self._box(n, s, me).in_rows] for n in bucket if s in first[n]]
                for s in ranks
            ]
            for own, came in zip(parts, self._exchange(outgoing, parts), strict=True):
                for part, received in zip(own, came, strict=True):
                    part.copy_(received)

    def collect(self) -> None:
        """Do nothing: gradients add up on the weights until the step ends."""

    @torch.no_grad()
    def finish(self) -> None:
        """Put the gradients of the step, summed over the ranks that have some, on `rows`."""
        names = list(self._weights)
        device = self._mesh.world.device
        has = [self._weights[name].grad is not None for name in names]
        flags = all_reduce(same_everywhere(has, device), self.shard_group, "max").tolist()
        seen = {name for name, flag in zip(names, flags, strict=True) if flag}
        for bucket in self._buckets:
            present = [name for name in bucket if name in seen]
            if present:
                self._reduce(present)
        for name in names:
            self._weights[name].grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """After an update of `rows`: send each rank what it holds of them."""
        me = self.shard_group.rank
        ranks = range(self.shard_group.size)
        for bucket in self._buckets:
            outgoing = [[self.rows[n][self._box(n, t, me).in_rows] for n in bucket] for t in ranks]
            parts = [
                [self._weights[n].data[self._box(n, me, s).in_part] for n in bucket] for s in ranks
            ]
            for own, came in zip(parts, self._exchange(outgoing, parts), strict=True):
                for part, received in zip(own, came, strict=True):
                    part.copy_(received)

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows as the whole parameter's, for a checkpoint."""
        return as_global(local, self._shards[name], self._mesh, self.shard_group)

    def _first_holders(self, name: str) -> set[int]:
        """Return the ranks that together hold each part of a parameter once."""
        cuts = [cuts[name] for cuts in self._cuts]
        return {cuts.index(cut) for cut in cuts}

    def _reduce(self, names: Sequence[str]) -> None:
        me = self.shard_group.rank
        ranks = range(self.shard_group.size)
        outgoing = []
        for target in ranks:
            outgoing.append([])
            for name in names:
                weight = self._weights[name]
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                outgoing[-1].append(gradient[self._box(name, me, target).in_part])
        sums = {name: torch.zeros_like(self.rows[name]) for name in names}
        parts = [[sums[name][self._box(name, s, me).in_rows] for name in names] for s in ranks]
        for own, came in zip(parts, self._exchange(outgoing, parts), strict=True):
            for part, received in zip(own, came, strict=True):
                part.add_(received)
        for name in names:
            self.rows[name].grad = sums[name]

    def _exchange(
        self, outgoing: list[list[Tensor]], like: list[list[Tensor]]
    ) -> list[list[Tensor]]:
        """Send each rank its tensors; return each rank's, in the shapes of `like`."""
        sent_counts = [sum(part.numel() for part in parts) for parts in outgoing]
        received_counts = [sum(part.numel() for part in parts) for parts in like]
        none = next(iter(self._weights.values())).new_empty(0)
        sent = torch.cat([none, *(part.reshape(-1) for parts in outgoing for part in parts)])
        received = all_to_all(sent, sent_counts, received_counts, self.shard_group)
        runs = received.split([part.numel() for parts in like for part in parts])
        shaped = iter(runs)
        return [[next(shaped).view(part.shape) for part in parts] for parts in like]

    def _box(self, name: str, holder: int, updater: int) -> _Box:
        """Return what the cut of one rank shares with the rows of another."""
        shard = self._shards[name]
        rows = shard.rows_of(updater)
        cut: Cut | None = self._cuts[holder][name]
        if cut is None:
            return _Box((rows,), (slice(None),))
        if cut.dim == 1:
            return _Box((rows,), (slice(None), slice(cut.begin, cut.end)))
        begin, end = max(rows.start, cut.begin), min(rows.stop, cut.end)
        end = max(begin, end)
        in_part = slice(begin - cut.begin, end - cut.begin)
        return _Box((in_part,), (slice(begin - rows.start, end - rows.start),))


def _fill(sizes: dict[str, int], bucket_bytes: int) -> Iterator[list[str]]:
    """Cut the names, from the end of the model on, into buckets of at most so many bytes."""
    names, filled = [], 0
    for name in reversed(sizes):
        if names and filled + sizes[name] > bucket_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += sizes[name]
    if names:
        yield names
