"""Data parallelism with ZeRO stages 0 to 2: gradients summed over ranks, state held by rows.

Ranks see different rows, or along `cp` different tokens of the same rows; here both are the same.
Stage 0 sums gradients over them and every rank updates everything. From stage 1 on a rank
gets the summed gradients of its rows alone, has optimizer state for these, updates them and sends
them back. Stage 2 sends the gradients of each microbatch as soon as the backward has made a bucket
of them, so that whole gradients never exist. Sources: Rajbhandari et al. 2020 (ZeRO), figure 1.

Gradients are sums, not means: a loss divides by the labels of the global batch, so that nothing is
rescaled here. Every rank sends the same buckets in the same order whatever its own backward made;
a parameter without a gradient anywhere keeps none, as in one process.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.utils.hooks import RemovableHandle

from fivefold.parallel.collectives import all_gather, all_reduce, reduce_scatter, sum_values
from fivefold.parallel.mesh import Group, Mesh, single
from fivefold.parallel.row_shard import RowShard, make_buckets, same_everywhere

_IN_FLIGHT = 2
"""Reduce-scatters of stage 2 that may run at a time; each holds one whole bucket."""


class Sharding(Protocol):
    """What the optimizer and the step need to know of data parallelism, whatever its stage."""

    @property
    def rows(self) -> Mapping[str, nn.Parameter]:
        """This rank's rows of each trained parameter, which the optimizer updates."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the whole parameters."""
        ...

    @property
    def data_group(self) -> Group:
        """The ranks that see different rows."""
        ...

    @property
    def everyone(self) -> Group:
        """The ranks that see different rows, tokens or layers: metrics and counts add up."""
        ...

    @property
    def takes_uneven_rows(self) -> bool:
        """May a rank run fewer microbatches than another?"""
        ...

    @property
    def shard_group(self) -> Group:
        """The ranks among which rows are shared; alone where every rank has all rows."""
        ...

    def collect(self) -> None:
        """Take the gradients of one backward."""
        ...

    def finish(self) -> None:
        """Put the gradients of the step, summed over all ranks that made some, on `rows`."""
        ...

    def restore(self) -> None:
        """After an update of `rows`: make the weights of the model whole again."""
        ...

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows of a parameter as the whole, for a checkpoint."""
        ...


class Zero:
    """Stages 0 to 2 on flat buckets."""

    takes_uneven_rows = True

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        computed: Mapping[str, nn.Parameter] | None,
        mesh: Mesh,
    ) -> None:
        """Share the trained parameters `weights` of a model that every rank has whole.

        `computed` are the parameters on which backward leaves gradients: the same, or a copy in a
        lower precision. Stage 2 takes gradients from there itself; at stages 0 and 1 they are to be
        added up on `weights` before `finish`. None: somebody else puts gradients on `rows`.
        """
        config = mesh.config
        self.stage = config.zero_stage
        self.data_group, self.everyone = mesh.data, mesh.everyone
        self.shard_group = single(mesh.ledger) if self.stage == 0 else self.everyone
        self._weights = {name: value for name, value in weights.items() if value.requires_grad}
        self.shapes = {name: tuple(value.shape) for name, value in self._weights.items()}
        self._mesh = mesh
        # Backward makes gradients from the end of the model on.
        self.buckets = make_buckets(
            self._weights,
            reversed(self._weights),
            self.shard_group.size,
            self.shard_group.rank,
            config.bucket_bytes,
        )
        self._shards = {n: s for bucket in self.buckets for n, s in bucket.shards.items()}
        self.rows = {name: self._local_rows(name) for name in self._weights}
        self.peak_bucket_bytes = 0
        """Most bytes of whole gradient buckets that existed at a time."""
        self._sums: list[Tensor | None] = [None] * len(self.buckets)
        self._seen: set[str] = set()
        self._filling: dict[int, Tensor] = {}
        self._missing: dict[int, set[str]] = {}
        self._next = 0
        self._pending: list[tuple[int, Tensor, Tensor, dist.Work | None]] = []
        self._place = {n: i for i, bucket in enumerate(self.buckets) for n in bucket.shards}
        self._hooks: list[RemovableHandle] = []
        if computed is not None and self.stage == 2 and self.everyone.size > 1:
            self._hooks = [
                computed[name].register_post_accumulate_grad_hook(self._hook(name))
                for name in self._weights
            ]

    def collect(self) -> None:
        """Send what the backward left of its buckets (stage 2); nothing at other stages."""
        if self.stage < 2 or self.everyone.size == 1:
            return
        while self._next < len(self.buckets):
            self._launch()
        while self._pending:
            self._land()
        self._next = 0

    def finish(self) -> None:
        """Put the gradients of the step, summed over the ranks, on `rows`."""
        if self.everyone.size == 1:
            return
        if self.stage < 2:
            self._seen = {n for n, weight in self._weights.items() if weight.grad is not None}
        names = list(self._weights)
        device = self._mesh.world.device
        flags = same_everywhere([name in self._seen for name in names], device)
        anywhere = all_reduce(flags, self.everyone, "max").tolist()
        seen = {name for name, flag in zip(names, anywhere, strict=True) if flag}
        for index, bucket in enumerate(self.buckets):
            if self.stage < 2:
                self._reduce_whole(index)
            run = self._sums[index]
            for name in bucket.shards:
                has_gradient = name in seen and run is not None
                self.rows[name].grad = bucket.local(run, name) if has_gradient else None  # pyright: ignore[reportArgumentType]
        self._sums = [None] * len(self.buckets)
        self._seen = set()

    def restore(self) -> None:
        """Gather the updated rows of all ranks into the weights."""
        if self.shard_group.size == 1:
            return
        with torch.no_grad():
            for bucket in self.buckets:
                whole, run = bucket.empty_whole(), bucket.empty_run()
                for name in bucket.shards:
                    bucket.local(run, name).copy_(self.rows[name])
                    bucket.padding(run, name).zero_()
                work = all_gather(whole, run, self.shard_group)
                if work is not None:
                    work.wait()
                for name in bucket.shards:
                    bucket.unpack(whole, name, self._weights[name].data)

    def close(self) -> None:
        """Leave gradients where backward puts them; the next training may share the model anew."""
        for hook in self._hooks:
            hook.remove()

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows as the whole parameter's, for a checkpoint."""
        return as_global(local, self._shards[name], self._mesh, self.shard_group)

    def _local_rows(self, name: str) -> nn.Parameter:
        weight = self._weights[name]
        if self.shard_group.size == 1:
            return weight
        # A view: an update of the rows is one of the weight.
        return nn.Parameter(weight.data[self._shards[name].rows])

    def _reduce_whole(self, index: int) -> None:
        """Sum one bucket of whole gradients over the ranks, and drop them."""
        bucket = self.buckets[index]
        whole = bucket.empty_whole()
        self._count_bytes(bucket.whole_bytes)
        for name in bucket.shards:
            bucket.pack(whole, name, self._weights[name].grad)
            self._weights[name].grad = None
        if self.shard_group.size == 1:
            self._sums[index] = all_reduce(whole, self.everyone)[0]
            return
        run = bucket.empty_run()
        work = reduce_scatter(run, whole, self.shard_group)
        if work is not None:
            work.wait()
        self._sums[index] = run

    def _hook(self, name: str):
        def take(parameter: Tensor) -> None:
            index = self._place[name]
            bucket = self.buckets[index]
            if index not in self._filling:
                self._open(index)
            bucket.pack(self._filling[index], name, parameter.grad)
            parameter.grad = None
            self._seen.add(name)
            self._missing[index].discard(name)
            # In order only: the ranks' collectives must meet.
            while self._next < len(self.buckets) and self._missing.get(self._next) == set():
                self._launch()

        return take

    def _open(self, index: int) -> None:
        bucket = self.buckets[index]
        self._filling[index] = bucket.empty_whole()
        self._missing[index] = set(bucket.shards)
        in_use = [*self._filling, *(pending[0] for pending in self._pending)]
        self._count_bytes(sum(self.buckets[i].whole_bytes for i in in_use))

    def _launch(self) -> None:
        """Send the next bucket, with zeros for what this rank's backward did not make."""
        index, self._next = self._next, self._next + 1
        if index not in self._filling:
            self._open(index)
        bucket, whole = self.buckets[index], self._filling.pop(index)
        for name in self._missing.pop(index):
            bucket.pack(whole, name, None)
        run = bucket.empty_run()
        while len(self._pending) >= _IN_FLIGHT:
            self._land()
        self._pending.append((index, whole, run, reduce_scatter(run, whole, self.shard_group)))

    def _land(self) -> None:
        """Wait for the oldest bucket and add its sum to those of the microbatches before."""
        index, _, run, work = self._pending.pop(0)
        if work is not None:
            work.wait()
        total = self._sums[index]
        self._sums[index] = run if total is None else total.add_(run)

    def _count_bytes(self, size: int) -> None:
        self.peak_bucket_bytes = max(self.peak_bucket_bytes, size)


def as_global(local: Tensor, shard: RowShard, mesh: Mesh, group: Group) -> Tensor:
    """Present this rank's rows of a tensor as a DTensor of the whole; alone: as it is."""
    if group.size == 1:
        return local
    strides = torch.empty(shard.shape, device="meta").stride()
    return DTensor.from_local(
        local,
        mesh.flat_device_mesh(group),
        [Shard(0)],
        run_check=False,
        shape=torch.Size(shard.shape),
        stride=strides,
    )


def global_norm(local: float | None, group: Group, device: torch.device) -> float | None:
    """Return the norm of what all ranks of the group hold, each its own part, None being nothing.

    None where nobody holds anything.
    """
    if group.size == 1:
        return local
    mine = [0.0, 0.0] if local is None else [local * local, 1.0]
    square, holders = sum_values(mine, group, device)
    if not holders:
        return None
    return math.sqrt(square) if square >= 0 else math.nan
