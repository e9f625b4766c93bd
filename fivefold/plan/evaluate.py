"""One layout in figures: memory of the fullest rank, time of a step, where the time goes.

A first estimate uses closed forms for bubbles and microbatches in flight; `simulate_layout`
replaces them by the schedule's table under the stages' own costs. Makespans grow linearly once a
pipeline is full, so long batches are extrapolated from two short ones; a period never takes less
than the busiest rank works in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fivefold.plan.activation_choice import ActivationChoice
from fivefold.plan.communication import edge_seconds
from fivefold.plan.layout import Layout
from fivefold.plan.make_schedule import make_schedule
from fivefold.plan.piece import Piece
from fivefold.plan.rank_load import (
    Problem,
    buffer_bytes,
    exposed_reduction_seconds,
    largest_state_bytes,
    optimizer_seconds,
    stages_by_rank,
)
from fivefold.plan.simulate import StageCosts, simulate

_EXACT_ACTIONS = 1000
"""Stage microbatches up to which a whole step is simulated instead of extrapolated."""


@dataclass(frozen=True)
class LayoutPlan:
    """Figures of one layout; bytes are of the fullest pipeline rank, seconds of one step."""

    layout: Layout
    microbatches: int
    state_bytes: float
    activation_bytes: float
    buffer_bytes: float
    pipeline_seconds: float
    bubble_rate: float
    reduction_seconds: float
    optimizer_seconds: float
    mfu: float
    tokens_a_second: float
    choices: tuple[ActivationChoice, ...] = ()
    """What becomes of the layers of each pipeline rank, in a mixed layout."""

    @property
    def host_bytes(self) -> float:
        """Bytes in host memory of the rank that moves most."""
        return max((choice.host_bytes for choice in self.choices), default=0.0)

    @property
    def step_seconds(self) -> float:
        """Time of one optimizer step."""
        return self.pipeline_seconds + self.reduction_seconds + self.optimizer_seconds

    @property
    def memory_bytes(self) -> float:
        """All bytes of the fullest rank, without what the hardware reserves."""
        return self.state_bytes + self.activation_bytes + self.buffer_bytes


def estimate_layout(problem: Problem, layout: Layout, stages: Sequence[Piece]) -> LayoutPlan:
    """Return the figures of a layout from closed forms, `stages` being its cut chain."""
    costs = stage_costs(problem, layout, stages)
    microbatches = problem.count_microbatches(layout)
    weight = sum(costs.weight_gradient)
    whole = sum(costs.forward) + sum(costs.input_gradient) + weight
    idle_of_all = {
        "1f1b": whole,
        "interleaved": whole / layout.chunks,
        "zb_h1": whole - 2 * weight,
        "zb_v": max(0.0, whole - 3 * weight),
        "v_half": whole / 2,
    }[layout.schedule]
    bubble = (layout.pipeline - 1) / layout.pipeline * idle_of_all
    slowest = max(sum(stage.seconds for stage in local) for local in stages_by_rank(layout, stages))
    seconds = microbatches * slowest + bubble
    activations = _in_flight(layout, microbatches) * max(costs.memory)
    return _finish(problem, layout, stages, seconds, bubble / seconds, activations)


def simulate_layout(problem: Problem, layout: Layout, stages: Sequence[Piece]) -> LayoutPlan:
    """Return the figures of a layout from its simulated schedule."""
    costs = stage_costs(problem, layout, stages)
    microbatches = problem.count_microbatches(layout)
    period = layout.pipeline
    short = 3 * period + microbatches % period
    exact = microbatches <= short + period or microbatches * len(stages) <= _EXACT_ACTIONS
    sizes = [microbatches] if exact else [short, short + period]
    lines = []
    for size in sizes:
        table = make_schedule(
            layout.schedule, layout.pipeline, size, chunks=layout.chunks, costs=costs
        )
        lines.append(simulate(table, costs))
    seconds, work = lines[-1].makespan, lines[-1].work
    if not exact:
        grown = [now - before for now, before in zip(work, lines[0].work, strict=True)]
        periods = (microbatches - sizes[-1]) / period
        seconds += periods * max(seconds - lines[0].makespan, *grown)
        work = [busy + periods * more for busy, more in zip(work, grown, strict=True)]
    idle = 1 - sum(work) / layout.pipeline / seconds
    return _finish(problem, layout, stages, seconds, idle, max(lines[-1].peak_memory))


def stage_costs(problem: Problem, layout: Layout, stages: Sequence[Piece]) -> StageCosts:
    """Return what the schedule costs; messages behind the MTP layer carry its streams too.

    A split backward keeps everything until the weight gradient is done.
    """
    tokens = problem.run.context_tokens / layout.context
    edges = []
    streams = 1
    for stage in stages[:-1]:
        streams += stage.streams
        edges.append(edge_seconds(problem.config, tokens, layout, problem.hardware, streams))
    memory = tuple(stage.activation_bytes for stage in stages)
    return StageCosts(
        forward=tuple(stage.forward for stage in stages),
        input_gradient=tuple(stage.input_gradient for stage in stages),
        weight_gradient=tuple(stage.weight_gradient for stage in stages),
        edge=tuple(edges),
        memory=memory,
        weight_memory=memory,
    )


def _in_flight(layout: Layout, microbatches: int) -> float:
    """Return the stage microbatches that the fullest rank holds."""
    ranks, chunks = layout.pipeline, layout.chunks
    most = {
        "1f1b": ranks,
        "interleaved": chunks * ranks + ranks - 1,
        "zb_h1": ranks,
        "zb_v": 2 * ranks,
        "v_half": ranks + 2,
    }[layout.schedule]
    return min(most, chunks * microbatches)


def _finish(
    problem: Problem,
    layout: Layout,
    stages: Sequence[Piece],
    pipeline_seconds: float,
    bubble_rate: float,
    activations: float,
) -> LayoutPlan:
    """Add what does not depend on the schedule: state, buffers and the end of the step."""
    reduction = exposed_reduction_seconds(problem, layout, stages)
    optimizer = optimizer_seconds(problem, layout, stages)
    tokens_a_second = problem.batch_tokens / (pipeline_seconds + reduction + optimizer)
    peak = layout.gpus * problem.hardware.peak_flops
    return LayoutPlan(
        layout=layout,
        microbatches=problem.count_microbatches(layout),
        state_bytes=largest_state_bytes(problem, layout, stages),
        activation_bytes=activations,
        buffer_bytes=buffer_bytes(problem, layout),
        pipeline_seconds=pipeline_seconds,
        bubble_rate=bubble_rate,
        reduction_seconds=reduction,
        optimizer_seconds=optimizer,
        mfu=tokens_a_second * problem.flops_a_token / peak,
        tokens_a_second=tokens_a_second,
    )
