"""Layouts whose ranks keep, move or compute again layer by layer, as little as their memory asks.

A rank of a pipeline holds fewer microbatches than the ranks before it, so that each has a choice of
its own (`activation_choice`). Recomputation and copies in the open lengthen the backward of the
stages, and the schedule is simulated with them.
"""

from collections.abc import Sequence
from dataclasses import replace

from fivefold.plan.activation_choice import ActivationChoice, LayerCost, choose_treatments
from fivefold.plan.evaluate import LayoutPlan, simulate_layout
from fivefold.plan.layout import Layout
from fivefold.plan.make_schedule import make_schedule, placement_of
from fivefold.plan.memory import MTP_WIDTHS
from fivefold.plan.piece import Piece, merge_pieces
from fivefold.plan.rank_load import Problem, buffer_bytes, largest_state_bytes

_ON_THE_WAY = 3
"""Moved runs on a pipeline rank at once: on the way out, at work, on the way in."""


def plan_mixed(problem: Problem, layout: Layout, cut: Sequence[Sequence[Piece]]) -> LayoutPlan:
    """Return the figures of a layout, `cut` being its chain in stages, nothing recomputed.

    Raises:
        ActivationBoundError: some rank cannot hold its share whatever becomes of its layers.
    """
    layout = layout.model_copy(update={"recompute": "none", "is_mixed": True})
    hardware = problem.hardware
    stages = [merge_pieces(pieces) for pieces in cut]
    free = hardware.memory_bytes - hardware.reserved_bytes - buffer_bytes(problem, layout)
    free -= largest_state_bytes(problem, layout, stages)
    homes = placement_of(layout.schedule, layout.pipeline, layout.chunks)
    flying = _in_flight(
        layout.schedule,
        layout.pipeline,
        layout.chunks,
        min(problem.count_microbatches(layout), 2 * layout.pipeline),
    )
    choices, most = [], 0.0
    for rank in range(layout.pipeline):
        local = [stage for stage, home in enumerate(homes) if home == rank]
        costs = {
            (stage, place): _layer_cost(problem, layout, piece, flying[stage])
            for stage in local
            for place, piece in enumerate(cut[stage])
            if _is_layer(piece)
        }
        layers = list(costs.values())
        others = sum(flying[stage] * stages[stage].activation_bytes for stage in local)
        others -= sum(each.in_flight * each.runs * each.kept_bytes for each in layers)
        choice = choose_treatments(
            layers,
            free - others,
            host_bandwidth=hardware.host_bandwidth,
            on_the_way=_ON_THE_WAY,
        )
        for (stage, _), seconds in zip(costs, choice.added_seconds, strict=True):
            slower = stages[stage].input_gradient + seconds
            stages[stage] = replace(stages[stage], input_gradient=slower)
        most = max(most, others + choice.held_bytes)
        choices.append(choice)
    plan = simulate_layout(problem, layout, stages)
    return replace(plan, activation_bytes=most, choices=tuple(choices))


def busiest_choice(plan: LayoutPlan) -> ActivationChoice:
    """Return the choice of the rank that spends most on its activations."""
    return max(plan.choices, key=lambda choice: (choice.seconds, choice.host_bytes))


def _is_layer(piece: Piece) -> bool:
    return piece.name.startswith("layer") or piece.name == "mtp"


def _layer_cost(problem: Problem, layout: Layout, piece: Piece, in_flight: int) -> LayerCost:
    """Return what a layer or the MTP layer costs by block run."""
    config = problem.config
    runs = config.fivefold.mtp_depths if piece.name == "mtp" else 1
    tokens = problem.run.context_tokens / layout.context / layout.tensor
    width = config.hidden_size * problem.precision.activation_bytes * tokens
    outside = MTP_WIDTHS * width if piece.name == "mtp" else 0.0
    return LayerCost(
        kept_bytes=piece.activation_bytes / runs - outside,
        input_bytes=width,
        forward=piece.forward / runs,
        backward=(piece.input_gradient + piece.weight_gradient) / runs,
        runs=runs,
        in_flight=in_flight,
    )


def _in_flight(schedule: str, ranks: int, chunks: int, microbatches: int) -> tuple[int, ...]:
    """Return the most microbatches between forward and backward, by stage."""
    table = make_schedule(schedule, ranks, microbatches, chunks=chunks)
    now, most = [0] * table.stages, [0] * table.stages
    for row in table.actions:
        for stage, kind, _ in row:
            now[stage] += {"F": 1, "B": -1}.get(kind, 0)
            most[stage] = max(most[stage], now[stage])
    return tuple(most)
