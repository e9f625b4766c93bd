"""Between a model in parts and the optimizer: gradients summed into rows, updated rows sent back.

However a parameter is cut for computing, by heads, columns, vocabulary or experts, and by FSDP2
once more, the optimizer holds it by rows, as at ZeRO stage 1: `RowShard` over all ranks of the
mesh's inner axes. A saved state, distributed Muon and the norm over all ranks are then those of
plain data parallelism, and a state loads on any mesh.

Both ways are one all-to-all a bucket. A rank sends each other rank what it has of that rank's rows,
and nobody receives what a rank does not have: gradients of experts come from the ranks that hold
them alone (`edp`), those of heads from the ranks with these heads, replicated ones from all. The
receiver adds up in the order of ranks, so that sums do not depend on timing (`row_bucket`). Stage 2
sends gradients as the backward makes them (`gradient_stream`), those of a pipeline stage when its
run ends. Where every rank's part is its rows, as under `fsdp` alone, they are updated in place and
nothing is sent.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fivefold.errors import ConfigError
from fivefold.parallel.collectives import all_reduce, all_to_all
from fivefold.parallel.gradient_stream import GradientStream
from fivefold.parallel.mesh import Group
from fivefold.parallel.part import Box
from fivefold.parallel.row_bucket import RowBucket
from fivefold.parallel.row_shard import RowShard, same_everywhere
from fivefold.parallel.tensor import SplitModel, local_of
from fivefold.parallel.zero import as_global

INNER_AXES = ("dp", "fsdp", "cp", "tp")
"""The axes over which rows are shared."""


class SplitRows:
    """The rows of a `SplitModel` that this rank updates; a `parallel.zero.Sharding`."""

    def __init__(
        self,
        split: SplitModel,
        computed: Mapping[str, nn.Parameter] | None = None,
        stages: Mapping[int, Collection[str]] | None = None,
    ) -> None:
        """Take the rows of the parameters that `split` trains.

        `computed` are the parameters on which backward leaves gradients, for stage 2 to take them
        from there. `stages` are those that one pipeline stage alone has, for stage 2 to take them
        when a run of its backwards ends. Others add up on the parameters of `split`.

        Raises:
            ConfigError: ZeRO stage 0.
        """
        mesh, config = split.mesh, split.mesh.config
        if config.zero_stage == 0:
            raise ConfigError(
                expected="`parallel.zero` 1 or 2 with `tp` or `ep`, or `fsdp`",
                found="stage 0",
                fix="Leave `zero` out",
            )
        self._mesh, self._units = mesh, split.units
        self.shard_group: Group = mesh.group(*INNER_AXES)
        self.data_group, self.everyone = mesh.data, mesh.everyone
        # Ranks that exchange tokens or weights have to step through as many microbatches.
        self.takes_uneven_rows = not config.keeps_step
        named = {name: split.model.get_parameter(name) for name in split.shapes}
        self._weights = {name: value for name, value in named.items() if value.requires_grad}
        self.parts = {name: _part_of(weight) for name, weight in self._weights.items()}
        """This rank's part of each parameter; `take_shards` moves gradients of shards here."""
        self.shapes = {name: split.shapes[name] for name in self._weights}
        group = self.shard_group
        self._shards = {
            name: RowShard(shape, group.size, group.rank) for name, shape in self.shapes.items()
        }
        self._boxes = [split.boxes_of_rank(rank) for rank in group.ranks]
        self.rows = {name: self._own_rows(name) for name in self._weights}
        apart = [name for name in self._weights if self.rows[name] is not self.parts[name]]
        self._buckets: list[RowBucket] = []
        self._of_stage: dict[int, range] = {}
        for stage, names in (stages or {}).items() if config.zero_stage == 2 else ():
            begin = len(self._buckets)
            self._buckets += self._make_buckets([name for name in apart if name in names])
            self._of_stage[stage] = range(begin, len(self._buckets))
        placed = {name for bucket in self._buckets for name in bucket.names}
        self._buckets += self._make_buckets([name for name in apart if name not in placed])
        self._sums: dict[int, Tensor] = {}
        self._seen: set[str] = set()
        self.stream: GradientStream | None = None
        """Takes gradients from the backward; None: they add up until the step ends."""
        if config.zero_stage == 2 and computed is not None:
            self.stream = GradientStream(self._buckets, computed)
        self.take_over()

    @torch.no_grad()
    def take_over(self) -> None:
        """Take the rows from the weights, which a saved state may just have filled."""
        me = self.shard_group.rank
        ranks = range(self.shard_group.size)
        for bucket in self._buckets:
            first = {name: self._first_holders(name) for name in bucket.names}
            self._exchange(
                [
                    [self.parts[n][bucket.piece(n, me, t).in_part] for n in first if me in first[n]]
                    for t in ranks
                ],
                [
                    [self.rows[n][bucket.piece(n, s, me).in_rows] for n in first if s in first[n]]
                    for s in ranks
                ],
            )

    def collect(self) -> None:
        """Send what the backward left of its buckets (stage 2); nothing at other stages."""
        if self.stream is not None:
            self.stream.collect()

    def acquire(self, stage: int) -> None:
        """Do nothing: gradients of a pipeline stage add up on the weights until `release`."""

    @torch.no_grad()
    def release(self, stage: int) -> None:
        """Sum the gradients of a stage over the ranks, bucket by bucket, and drop them (stage 2).

        Other stages' wait for `finish`.
        """
        for index in self._of_stage.get(stage, ()):
            names = self._buckets[index].names
            self._seen |= {name for name in names if self.parts[name].grad is not None}
            self._sums[index] = self._reduced(self._buckets[index], self._sums.get(index))

    def close(self) -> None:
        """Leave gradients where backward puts them."""
        if self.stream is not None:
            self.stream.close()

    def take_shards(self) -> None:
        """Move the gradients that FSDP2 has left on its shards to `parts`.

        What it gathered for a forward without a backward, as of a head that learns nothing, goes.
        """
        for unit in self._units:
            unit.reshard()
        for name, weight in self._weights.items():
            part = self.parts[name]
            if part is not weight and weight.grad is not None:
                part.grad, weight.grad = local_of(weight.grad), None

    @torch.no_grad()
    def finish(self) -> None:
        """Put the gradients of the step, summed over the ranks that have some, on `rows`."""
        self.take_shards()
        sums, seen = [self._sums.get(index) for index in range(len(self._buckets))], self._seen
        self._sums, self._seen = {}, set()
        if self.stream is not None:
            sums, seen = self.stream.take()
        seen |= {name for name, part in self.parts.items() if part.grad is not None}
        flags = same_everywhere([name in seen for name in self.parts], self._mesh.world.device)
        anywhere = all_reduce(flags, self.shard_group, "max").tolist()
        seen = {name for name, flag in zip(self.parts, anywhere, strict=True) if flag}
        sent = {index for of_stage in self._of_stage.values() for index in of_stage}
        for index, (bucket, total) in enumerate(zip(self._buckets, sums, strict=True)):
            is_late = self.stream is None and index not in sent
            if is_late and not seen.isdisjoint(bucket.names):
                total = self._reduced(bucket)
            found = {} if total is None else bucket.rows(total)
            for name in bucket.names:
                self.rows[name].grad = found.get(name) if name in seen else None
        for name, part in self.parts.items():
            if part is self.rows[name] and name in seen and part.grad is None:
                part.grad = torch.zeros_like(part)

    @torch.no_grad()
    def restore(self) -> None:
        """After an update of `rows`: send each rank what it holds of them."""
        me = self.shard_group.rank
        ranks = range(self.shard_group.size)
        for bucket in self._buckets:
            names = bucket.names
            self._exchange(
                [[self.rows[n][bucket.piece(n, t, me).in_rows] for n in names] for t in ranks],
                [[self.parts[n][bucket.piece(n, me, s).in_part] for n in names] for s in ranks],
            )

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows as the whole parameter's, for a checkpoint."""
        return as_global(local, self._shards[name], self._mesh, self.shard_group)

    def _make_buckets(self, names: Sequence[str]) -> list[RowBucket]:
        """Cut the parameters into buckets, in the order of their gradients."""
        if not names:
            return []
        like = self.parts[names[0]].detach()
        # Of whole parameters: parts may differ in size from rank to rank.
        sizes = {name: math.prod(self.shapes[name]) * like.element_size() for name in names}
        return [
            RowBucket({n: self._shards[n] for n in some}, self._boxes, self.shard_group, like)
            for some in _fill(sizes, self._mesh.config.bucket_bytes)
        ]

    def _own_rows(self, name: str) -> nn.Parameter:
        """Return this rank's rows: new ones, or its part where every rank's part is its rows."""
        shard, part = self._shards[name], self.parts[name]
        places = [Box(shard.rows_of(rank), None) for rank in range(self.shard_group.size)]
        if [boxes[name] for boxes in self._boxes] == places:
            return part
        return nn.Parameter(part.data.new_empty(shard.local_shape))

    def _first_holders(self, name: str) -> set[int]:
        """Return the ranks that together hold each part of a parameter once."""
        first: dict[str, int] = {}
        for rank, boxes in enumerate(self._boxes):
            first.setdefault(repr(boxes[name]), rank)  # slices have no hash
        return set(first.values())

    def _reduced(self, bucket: RowBucket, before: Tensor | None = None) -> Tensor:
        """Sum one bucket of gradients over the ranks, add it to `before`, and drop it."""
        whole = bucket.empty_whole()
        for name in bucket.names:
            bucket.pack(whole, name, self.parts[name].grad)
            self.parts[name].grad = None
        arrived, work = bucket.start(whole)
        if work is not None:
            work.wait()
        return bucket.add(before, arrived)

    def _exchange(self, outgoing: list[list[Tensor]], places: list[list[Tensor]]) -> None:
        """Send each rank its tensors; put each rank's into its places."""
        sent_counts = [sum(part.numel() for part in parts) for parts in outgoing]
        received_counts = [sum(place.numel() for place in own) for own in places]
        none = next(iter(self.parts.values())).new_empty(0)
        sent = torch.cat([none, *(part.reshape(-1) for parts in outgoing for part in parts)])
        received = all_to_all(sent, sent_counts, received_counts, self.shard_group)
        flat = [place for own in places for place in own]
        for place, came in zip(flat, received.split([p.numel() for p in flat]), strict=True):
            place.copy_(came.view(place.shape))


def _part_of(weight: nn.Parameter) -> nn.Parameter:
    """Return a parameter that is what this rank holds of the weight, or the weight itself."""
    if not isinstance(weight, DTensor):
        return weight
    return nn.Parameter(weight.to_local().detach())


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
