"""ZeRO-2 in a pipeline with two full gradient buffers (GLM-5 report, section 2.4.1).

A rank of an interleaved schedule holds several stages, but its backward passes stay with one for a
run of microbatches before they turn to another. So only that stage needs a full gradient: when its
run ends, the gradient is packed row shard by row shard and reduce-scattered over the data ranks
while the next stage fills the buffer anew, and each rank keeps the sum of its own rows. What would
be a full gradient for every stage is two, of the largest stage's size, and a shard each.

Surprises: with two stages a rank nothing is saved, and every run is reduced anew, so that the bytes
sent grow with the number of runs. With one stage nothing follows to overlap with, so its buckets
travel a few at a time. Deferred weight gradients belong to the run in which they are computed.
Parameters that two stages or ranks share stay out: their gradient is whole from the step's begin to
its end.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from fivefold.parallel.collectives import reduce_scatter
from fivefold.parallel.mesh import Group
from fivefold.parallel.row_shard import Bucket, make_buckets

_IN_FLIGHT = 2
"""Buckets of a single stage that may travel at a time."""


@dataclass
class RollingLedger:
    """Gradients in full size since the keeper was made; bytes sent stand in the group's ledger."""

    filling_bytes: int = 0
    """Bytes of the gradient that backward passes add to now."""
    travelling_bytes: int = 0
    """Bytes that are being reduced now."""
    peak_bytes: int = 0
    """Most bytes of both at once."""
    runs: int = 0
    """Gradients given away: one at the end of every run of one stage's backward pieces."""

    def count(self) -> None:
        """Note how much there is now."""
        self.peak_bytes = max(self.peak_bytes, self.filling_bytes + self.travelling_bytes)


class _Travelling(NamedTuple):
    """A bucket that is being reduced."""

    work: dist.Work | None
    whole: Tensor
    arriving: Tensor
    """This rank's run of the sum."""
    total: Tensor
    """Where it is added."""


class RollingGradients:
    """Keeper of the gradients of one rank's stages; `finish` leaves every rank its rows."""

    def __init__(
        self,
        stages: Mapping[int, Mapping[str, nn.Parameter]],
        group: Group,
        *,
        bucket_bytes: int = 2**25,
    ) -> None:
        """Lay out the gradient of each stage's trained parameters; `group` are the data ranks.

        Parameters that several stages hold must not be among them. `bucket_bytes` bounds one
        collective; a larger parameter is one by itself.
        """
        self._group = group
        self.parameters = {
            stage: {name: p for name, p in named.items() if p.requires_grad}
            for stage, named in stages.items()
        }
        every = [p for named in self.parameters.values() for p in named.values()]
        assert len(every) == len(set(every)), "parameters of two stages are kept apart"
        assert len({(p.dtype, p.device) for p in every}) <= 1, "one buffer holds one dtype"
        self.buckets = {
            stage: make_buckets(named, named, group.size, group.rank, bucket_bytes)
            for stage, named in self.parameters.items()
        }
        self._sums = {
            stage: [bucket.empty_run().zero_() for bucket in buckets]
            for stage, buckets in self.buckets.items()
        }
        lengths = {
            stage: sum(p.numel() for p in named.values())
            for stage, named in self.parameters.items()
        }
        self._buffer = every[0].new_zeros(max(lengths.values())).detach() if every else None
        self._overlaps = sum(map(bool, lengths.values())) > 1
        self._filling: int | None = None
        self._travelling: deque[_Travelling] = deque()
        self._touched: set[str] = set()
        self.ledger = RollingLedger()

    @property
    def full_bytes(self) -> int:
        """Bytes of one full buffer: the largest stage's gradient, padded to even shards."""
        return max(sum(b.whole_bytes for b in buckets) for buckets in self.buckets.values())

    @property
    def sum_bytes(self) -> int:
        """Bytes of this rank's rows of all stages."""
        return sum(run.nbytes for runs in self._sums.values() for run in runs)

    def run_bytes(self, stage: int) -> int:
        """Return the whole bytes that a run of the stage reduces."""
        return sum(bucket.whole_bytes for bucket in self.buckets[stage])

    def begin(self) -> None:
        """Start a step: no gradient yet."""
        assert self._filling is None, "a stage of the step before was not released"
        assert not self._travelling, "the step before was not finished"
        self._touched = set()
        for runs in self._sums.values():
            for run in runs:
                run.zero_()

    def acquire(self, stage: int) -> None:
        """Bind the `grad` of the stage's parameters to the zeroed buffer, unless it is bound."""
        if self._filling == stage or not self.parameters[stage]:
            return
        assert self._filling is None, f"stage {self._filling} was not released before {stage} began"
        assert self._buffer is not None, "a stage with parameters has a buffer"
        self._filling = stage
        begin = 0
        for parameter in self.parameters[stage].values():
            part = self._buffer[begin : begin + parameter.numel()].zero_()
            # `data` counts in-place changes anew, by which `release` knows what was added to.
            parameter.grad = part.view_as(parameter).data
            begin += parameter.numel()
        self.ledger.filling_bytes = begin * self._buffer.itemsize
        self.ledger.count()

    def release(self, stage: int) -> None:
        """Unbind the stage's `grad` and begin to reduce it; the buffer is free on return."""
        if not self.parameters[stage]:
            return
        assert self._filling == stage, f"stage {stage} was not acquired"
        assert self._buffer is not None
        begin = 0
        for name, parameter in self.parameters[stage].items():
            grad = parameter.grad
            assert grad is not None, f"the bound gradient of {name} was dropped"
            place = self._buffer.data_ptr() + begin * self._buffer.itemsize
            assert grad.data_ptr() == place, f"the bound gradient of {name} was replaced"
            if grad._version:
                self._touched.add(name)
            begin += parameter.numel()
        while self._travelling:
            self._collect()
        for bucket, total in zip(self.buckets[stage], self._sums[stage], strict=True):
            self._send(bucket, total, self.parameters[stage])
        self._filling = None
        self.ledger.filling_bytes = 0
        self.ledger.runs += 1

    @property
    def touched(self) -> frozenset[str]:
        """Parameters to which this rank's backward passes added something since `begin`."""
        return frozenset(self._touched)

    def finish(self) -> dict[str, Tensor]:
        """Wait for all reductions; return this rank's rows of each parameter's summed gradient.

        They are views of what the next `begin` clears.
        """
        assert self._filling is None, f"stage {self._filling} was not released"
        while self._travelling:
            self._collect()
        return {
            name: bucket.local(run, name)
            for stage, buckets in self.buckets.items()
            for bucket, run in zip(buckets, self._sums[stage], strict=True)
            for name in bucket.shards
        }

    def _send(self, bucket: Bucket, total: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
        """Start to reduce a bucket of the stage that ends its run, and drop its gradients."""
        while not self._overlaps and len(self._travelling) >= _IN_FLIGHT:
            self._collect()
        whole, arriving = bucket.empty_whole(), bucket.empty_run()
        for name in bucket.shards:
            bucket.pack(whole, name, parameters[name].grad)
            parameters[name].grad = None
        self.ledger.travelling_bytes += whole.nbytes
        self.ledger.count()
        work = reduce_scatter(arriving, whole, self._group)
        self._travelling.append(_Travelling(work, whole, arriving, total))

    def _collect(self) -> None:
        """Wait for the oldest bucket and add its sum to those of the runs before."""
        work, whole, arriving, total = self._travelling.popleft()
        if work is not None:
            work.wait()
        total += arriving
        self.ledger.travelling_bytes -= whole.nbytes
