"""Stages that only take time: a schedule on the real runtime, without the compute.

Each sleeps for its share of `plan.simulate.StageCosts` in the forward pass, for the input gradient
and for the weight gradient, and sends a message of one number. Sleeping takes no core, so that many
ranks on few cores show what a schedule does; compute on shared cores would show the cores.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fivefold.parallel.mesh import Group
from fivefold.parallel.pipeline.program import Message, StageResult
from fivefold.parallel.pipeline.runtime import PipelineRuntime
from fivefold.parallel.pipeline.weight_store import Deferred, WeightGradientStore
from fivefold.plan.schedule import Schedule
from fivefold.plan.simulate import StageCosts

_SHAPE = torch.Size([1])


class EmulatedStage(nn.Module):
    """One stage with the times of a plan."""

    def __init__(
        self,
        costs: StageCosts,
        stage: int,
        stages: int,
        store: WeightGradientStore,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self.costs, self.stage, self.stages = costs, stage, stages
        self.store, self.sleep = store, sleep
        self.weight = nn.Parameter(torch.zeros(_SHAPE))

    def messages(self, microbatch: None) -> list[Message]:
        """Expect one number from the stage before."""
        return [Message(_SHAPE, torch.float32)]

    def forward(self, microbatch: None, states: tuple[Tensor, ...]) -> StageResult:
        """Sleep for a forward pass."""
        x = states[0] if states else torch.zeros(_SHAPE)
        y = _Emulated.apply(x, self.weight, self)
        if self.stage == self.stages - 1:
            return StageResult((), (y.sum(),))
        return StageResult((y,))

    def weight_gradient(self, grad: Tensor) -> tuple[Tensor]:
        """Sleep for a weight gradient."""
        self.sleep(self.costs.weight_gradient[self.stage])
        return (grad.clone(),)


class _Emulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, stage: EmulatedStage) -> Tensor:
        ctx.stage = stage
        stage.sleep(stage.costs.forward[stage.stage])
        return x + 1

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        stage: EmulatedStage = ctx.stage
        stage.sleep(stage.costs.input_gradient[stage.stage])
        stage.store.put(Deferred((stage.weight,), stage.weight_gradient, (grads[0],)))
        return grads[0], None, None


class EmulatedRun:
    """One rank's part of a schedule whose stages sleep."""

    def __init__(self, schedule: Schedule, costs: StageCosts, group: Group) -> None:
        """Prepare the stages that the schedule places on this rank of the pipeline."""
        local = [s for s, home in enumerate(schedule.rank_of_stage) if home == group.rank]
        stores = {stage: WeightGradientStore() for stage in local}
        stages = {s: EmulatedStage(costs, s, schedule.stages, stores[s]) for s in local}
        self._microbatches = [None] * schedule.microbatches
        self._runtime = PipelineRuntime(
            schedule, stages, group=group, device=torch.device("cpu"), stores=stores
        )
        self._group = group

    def step(self) -> float:
        """Take one step together with the other ranks; return the seconds of the slowest."""
        dist.barrier(self._group.handle)
        begin = time.perf_counter()
        self._runtime.step(self._microbatches)
        elapsed = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        dist.all_reduce(elapsed, dist.ReduceOp.MAX, self._group.handle)
        return float(elapsed)
