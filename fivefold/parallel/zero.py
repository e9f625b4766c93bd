"""Data parallelism with ZeRO stages 0 to 2: gradients summed over ranks, state held by rows.

Ranks see different rows, or along `cp` different tokens of the same rows; here both are the same.
Stage 0 sums gradients over them and every rank updates everything. From stage 1 on a rank
gets the summed gradients of its rows alone, has optimizer state for these, updates them and sends
them back. Stage 2 sends the gradients of each microbatch as the backward makes them
(`gradient_stream`). Source: Rajbhandari et al. 2020 (ZeRO), figure 1.

Gradients are sums, not means: a loss divides by the labels of the global batch, so that nothing is
rescaled here. A parameter without a gradient anywhere keeps none, as in one process.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from fivefold.parallel.collectives import all_gather, all_reduce, reduce_scatter, sum_values
from fivefold.parallel.gradient_stream import GradientStream
from fivefold.parallel.mesh import Group, Mesh, single
from fivefold.parallel.row_shard import Bucket, RowShard, make_buckets, same_everywhere


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


@dataclass(frozen=True)
class _Reduced:
    """A bucket that a reduce-scatter sums; a `gradient_stream.StreamedBucket`."""

    bucket: Bucket
    group: Group

    @property
    def names(self) -> Collection[str]:
        return self.bucket.shards

    @property
    def whole_bytes(self) -> int:
        return self.bucket.whole_bytes

    def empty_whole(self) -> Tensor:
        return self.bucket.empty_whole()

    def pack(self, whole: Tensor, name: str, tensor: Tensor | None) -> None:
        self.bucket.pack(whole, name, tensor)

    def start(self, whole: Tensor) -> tuple[Tensor, dist.Work | None]:
        run = self.bucket.empty_run()
        return run, reduce_scatter(run, whole, self.group)

    def add(self, total: Tensor | None, arrived: Tensor) -> Tensor:
        return arrived if total is None else total.add_(arrived)


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
        self.stream: GradientStream | None = None
        """Takes gradients from the backward at stage 2; None: they add up until the step ends."""
        if computed is not None and self.stage == 2 and self.everyone.size > 1:
            reduced = [_Reduced(bucket, self.shard_group) for bucket in self.buckets]
            self.stream = GradientStream(reduced, computed)

    def collect(self) -> None:
        """Send what the backward left of its buckets (stage 2); nothing at other stages."""
        if self.stream is not None:
            self.stream.collect()

    def finish(self) -> None:
        """Put the gradients of the step, summed over the ranks, on `rows`."""
        if self.everyone.size == 1:
            return
        sums: list[Tensor | None] = [None] * len(self.buckets)
        if self.stream is not None:
            sums, seen = self.stream.take()
        else:
            seen = {n for n, weight in self._weights.items() if weight.grad is not None}
        names = list(self._weights)
        device = self._mesh.world.device
        flags = same_everywhere([name in seen for name in names], device)
        anywhere = all_reduce(flags, self.everyone, "max").tolist()
        seen = {name for name, flag in zip(names, anywhere, strict=True) if flag}
        for bucket, total in zip(self.buckets, sums, strict=True):
            run = self._reduced(bucket) if self.stream is None else total
            for name in bucket.shards:
                has_gradient = name in seen and run is not None
                self.rows[name].grad = bucket.local(run, name) if has_gradient else None  # pyright: ignore[reportArgumentType]

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
        if self.stream is not None:
            self.stream.close()

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows as the whole parameter's, for a checkpoint."""
        return as_global(local, self._shards[name], self._mesh, self.shard_group)

    def _local_rows(self, name: str) -> nn.Parameter:
        weight = self._weights[name]
        if self.shard_group.size == 1:
            return weight
        # A view: an update of the rows is one of the weight.
        return nn.Parameter(weight.data[self._shards[name].rows])

    def _reduced(self, bucket: Bucket) -> Tensor:
        """Sum one bucket of whole gradients over the ranks, and drop them."""
        whole = bucket.empty_whole()
        for name in bucket.shards:
            bucket.pack(whole, name, self._weights[name].grad)
            self._weights[name].grad = None
        if self.shard_group.size == 1:
            return all_reduce(whole, self.everyone)[0]
        run = bucket.empty_run()
        work = reduce_scatter(run, whole, self.shard_group)
        if work is not None:
            work.wait()
        return run


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
