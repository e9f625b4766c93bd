"""ZeRO-2 in a pipeline with two full gradient buffers (GLM-5 report, section 2.4.1).

A rank of an interleaved schedule holds several stages, but its backward passes stay with one for a
run of microbatches before they turn to another. So only that stage needs a full gradient: when its
run ends, the buffer is reduce-scattered over the data ranks while the next stage fills the other
one, and each rank keeps the sum of its own shard. What would be a full gradient for every stage is
two, of the largest stage's size, and a shard each.

Surprises: with two stages a rank nothing is saved, and every run is reduced anew, so that the
bytes sent grow with the number of runs. Deferred weight gradients belong to the run in which they
are computed. Parameters that two stages or ranks share stay out: their gradient is whole from the
step's begin to its end.
"""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fivefold.parallel import collectives
from fivefold.parallel.mesh import Group

BUFFERS = 2
"""One fills while the other is reduced."""


@dataclass
class RollingLedger:
    """Buffers since the keeper was made; bytes sent stand in the group's ledger."""

    live: int = 0
    """Full buffers in use now: filling or being reduced."""
    peak_live: int = 0
    """Most of them at once."""


class RollingGradients:
    """Keeper of the gradients of one rank's stages; `finish` leaves every rank its shards."""

    def __init__(
        self,
        stages: Mapping[int, nn.Module],
        group: Group,
        *,
        apart: Collection[nn.Parameter] = (),
    ) -> None:
        """Lay out the flat gradient of each stage; `group` are the data ranks, `apart` stays out.

        A stage's vector holds its trainable parameters one after another, padded with zeros to
        a multiple of the data ranks.
        """
        self._group, self._ranks = group, group.size
        kept_out = set(apart)
        self.parameters = {
            stage: [p for p in module.parameters() if p.requires_grad and p not in kept_out]
            for stage, module in stages.items()
        }
        every = [p for parameters in self.parameters.values() for p in parameters]
        assert len(every) == len(set(every)), "parameters of two stages belong to `apart`"
        kinds = {(p.dtype, p.device) for p in every}
        assert len(kinds) == 1, f"one flat buffer cannot hold {kinds}"
        ((self._dtype, self._device),) = kinds
        self.lengths = {
            stage: -(-sum(p.numel() for p in parameters) // self._ranks) * self._ranks
            for stage, parameters in self.parameters.items()
        }
        self.ledger = RollingLedger()
        self.shards = {
            stage: self._zeros(length // self._ranks) for stage, length in self.lengths.items()
        }
        self._free = [self._zeros(max(self.lengths.values())) for _ in range(BUFFERS)]
        self._filling: dict[int, Tensor] = {}
        self._reducing: deque[tuple[int, dist.Work | None, Tensor, Tensor]] = deque()

    def begin(self) -> None:
        """Start a step: no gradient yet."""
        assert not self._filling, "a stage of the step before was not released"
        assert not self._reducing, "the step before was not finished"
        for shard in self.shards.values():
            shard.zero_()

    def acquire(self, stage: int) -> None:
        """Bind the stage's `grad` to a zeroed buffer, unless it is bound."""
        if stage in self._filling or not self.parameters[stage]:
            return
        if not self._free:
            self._collect()
        assert self._free, "a stage's gradients were not released before another's began"
        buffer = self._free.pop()
        buffer.zero_()
        self._filling[stage] = buffer
        self.ledger.live += 1
        self.ledger.peak_live = max(self.ledger.peak_live, self.ledger.live)
        begin = 0
        for parameter in self.parameters[stage]:
            parameter.grad = buffer[begin : begin + parameter.numel()].view_as(parameter)
            begin += parameter.numel()

    def release(self, stage: int) -> None:
        """Unbind the stage's `grad` and begin to reduce it."""
        if not self.parameters[stage]:
            return
        buffer = self._filling.pop(stage)
        begin = 0
        for parameter in self.parameters[stage]:
            grad = parameter.grad
            assert grad is not None, "a bound gradient was dropped"
            place = buffer.data_ptr() + begin * buffer.itemsize
            assert grad.data_ptr() == place, "a bound gradient was replaced"
            parameter.grad = None
            begin += parameter.numel()
        length = self.lengths[stage]
        out = self._zeros(length // self._ranks)
        work = collectives.reduce_scatter(out, buffer[:length], self._group)
        self._reducing.append((stage, work, out, buffer))

    def finish(self) -> dict[int, Tensor]:
        """Wait for all reductions; return this rank's shard of each stage's summed gradient."""
        assert not self._filling, f"stages {list(self._filling)} were not released"
        while self._reducing:
            self._collect()
        return self.shards

    def _collect(self) -> None:
        """Wait for the oldest reduction and take its buffer back."""
        if not self._reducing:
            return
        stage, work, out, buffer = self._reducing.popleft()
        if work is not None:
            work.wait()
        self.shards[stage] += out
        self._free.append(buffer)
        self.ledger.live -= 1

    def _zeros(self, length: int) -> Tensor:
        return torch.zeros(length, dtype=self._dtype, device=self._device)
