"""The knapsack over layers for the whole step of one rank, whose order a schedule's table fixes.

What the device holds is a walk through the rank's forwards and backwards (`block_order`), with the
weight gradients that a schedule puts off beside it. The knapsack (`activation_choice`) knows one
number of microbatches in flight a layer; it is solved for those of the fullest place of the walk,
and its choice is walked before it is used. Where another place then holds more than the bound, that
place's numbers are taken into account too and the knapsack is solved again: stages of one rank are
not at their fullest together, and a sum over their maxima would ask for too much. Layers for which
the walk has room after all are kept.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fivefold.plan.activation_choice import (
    KEEP,
    RECOMPUTE,
    TREATMENTS,
    ActivationBoundError,
    ActivationChoice,
    LayerCost,
    Treatment,
    added_seconds,
    choose_treatments,
)
from fivefold.plan.block_order import (
    BlockEvent,
    RunBytes,
    block_events,
    held_bytes,
    one_pass,
    weight_places,
)
from fivefold.plan.schedule import Action


@dataclass(frozen=True)
class RankOrder:
    """A rank's forwards and backwards in one step, or in one pass through the model."""

    events: tuple[BlockEvent, ...]
    """In the order of the rank."""
    layers: tuple[int, ...]
    """Layer of each run."""
    stages: tuple[int, ...]
    """Pipeline stage of each run."""
    weight_places: tuple[int, ...]
    """Place of the first event behind each run's weight gradients."""

    @property
    def on_the_way(self) -> int:
        """Moved runs that are on the device at once."""
        forwards = len(self.layers)
        return 2 if all(event.is_forward for event in self.events[:forwards]) else 3


def pass_order(layers: Sequence[int]) -> RankOrder:
    """Return the order of one microbatch forward and back, without a pipeline."""
    runs = len(layers)
    places = tuple(2 * runs - run for run in range(runs))
    return RankOrder(tuple(one_pass(runs)), tuple(layers), (0,) * runs, places)


def step_order(row: Sequence[Action], layers: Mapping[int, Sequence[int]]) -> RankOrder:
    """Return the order of a rank's row, `layers[s]` being those that stage s runs, in turn."""
    blocks = {stage: len(of_stage) for stage, of_stage in layers.items()}
    forwards = [action.stage for action in row if action.kind == "F"]
    return RankOrder(
        tuple(block_events(row, blocks)),
        tuple(layer for stage in forwards for layer in layers[stage]),
        tuple(stage for stage in forwards for _ in layers[stage]),
        tuple(weight_places(row, blocks)),
    )


def choose_in_order(
    costs: Mapping[int, LayerCost],
    order: RankOrder,
    bound_bytes: float,
    *,
    host_bandwidth: float | None = None,
    deferred_limit_bytes: float | None = None,
) -> ActivationChoice:
    """Return treatments of the layers of `costs` that hold at most `bound_bytes` all the time.

    `host_bandwidth` is as in `choose_treatments`. A stage holds `deferred_limit_bytes` of weight
    gradients that are put off, and those of one microbatch, at most; None: all that the order asks.
    `in_flight` of the costs is filled in here; the choice's bytes are those of the walk.

    Raises:
        ActivationBoundError: no choice was found.
    """
    flights = _in_flight(order)
    deferred = deferred_line(order, costs, deferred_limit_bytes)
    walk = _Walk(order, costs, deferred, host_bandwidth)
    most = {layer: max(flight[layer] for flight in flights) for layer in costs}
    layers = _with_flights(costs, most)
    everything = [
        put_off + sum(count * costs[layer].kept_bytes for layer, count in flight.items())
        for flight, put_off in zip(flights, deferred, strict=True)
    ]
    place = _fullest(everything)
    runs, reserved = flights[place], deferred[place]
    choice: ActivationChoice | None = None
    while choice is None:
        try:
            found = choose_treatments(
                _with_flights(costs, runs),
                bound_bytes,
                host_bandwidth=host_bandwidth,
                on_the_way=order.on_the_way,
                reserved_bytes=reserved,
            )
        except ActivationBoundError:
            # It adds up bytes that do not come together; what holds least may still fit.
            choice = walk.leanest(layers)
            break
        line = walk.line(found.treatments, found.window)
        peak, place = max(line), _fullest(line)
        grown = runs | flights[place], max(reserved, deferred[place])
        if peak <= bound_bytes:
            choice = found
        elif grown == (runs, reserved):
            # More moved runs are there at once than the knapsack reckons with. What it thought to
            # have left is taken away too, or it would find the same again and again.
            reserved += max(peak - bound_bytes, peak - found.held_bytes - reserved)
        else:
            runs, reserved = grown
    choice = walk.without_needless(choice, bound_bytes)
    if choice.held_bytes > bound_bytes:
        raise ActivationBoundError(
            expected=f"room for {math.ceil(choice.held_bytes):,} bytes of activations, the least "
            "that was found",
            found=f"a bound of {bound_bytes:,.0f} bytes",
            fix="Raise the bound, take fewer or shorter rows in a microbatch, or, where a schedule "
            "puts weight gradients off, set `parallel.deferred_bytes` lower",
        )
    return replace(choice, host_bytes=_host_bytes(flights, costs, choice))


def held_line(
    order: RankOrder,
    costs: Mapping[int, LayerCost],
    treatments: Sequence[Treatment],
    window: int,
    deferred: Sequence[float],
) -> list[float]:
    """Return the bytes of a rank during each event, `deferred` being those that are put off."""
    treated = dict(zip(costs, treatments, strict=True))
    runs = [_run_bytes(costs[layer], treated[layer]) for layer in order.layers]
    moving = [run for run, layer in enumerate(order.layers) if treated[layer].move]
    held = held_bytes(order.events, runs, moving, window)
    return [bytes_ + put_off for bytes_, put_off in zip(held, deferred, strict=True)]


@dataclass(frozen=True)
class _Walk:
    """A rank's step on paper, for choices that are tried."""

    order: RankOrder
    costs: Mapping[int, LayerCost]
    deferred: Sequence[float]
    host_bandwidth: float | None

    def line(self, treatments: Sequence[Treatment], window: int) -> list[float]:
        """Return the bytes during each event."""
        return held_line(self.order, self.costs, treatments, window, self.deferred)

    def leanest(self, layers: Sequence[LayerCost]) -> ActivationChoice:
        """Return what holds least, as far as changing one layer after the other finds it."""
        options = TREATMENTS if self.host_bandwidth is not None else (RECOMPUTE, KEEP)

        def peak(treatments: Sequence[Treatment]) -> float:
            return max(self.line(treatments, 1))

        treatments = min(([each] * len(layers) for each in options), key=peak)
        for index in list(range(len(layers))) * 2:
            tried = [[*treatments[:index], each, *treatments[index + 1 :]] for each in options]
            treatments = min(tried, key=peak)
        seconds = [
            added_seconds(layers, index, treatment, 1, self.host_bandwidth)
            for index, treatment in enumerate(treatments)
        ]
        return ActivationChoice(tuple(treatments), 1, 0.0, 0.0, tuple(seconds))

    def without_needless(self, choice: ActivationChoice, bound_bytes: float) -> ActivationChoice:
        """Return the choice with those layers kept, the dearest first, that there is room for.

        The knapsack adds up bytes of layers that need not be there together.
        """
        dearest = sorted(range(len(self.costs)), key=choice.added_seconds.__getitem__, reverse=True)
        peak = max(self.line(choice.treatments, choice.window))
        found = replace(choice, held_bytes=peak)
        for index in dearest:
            treatments, seconds = list(found.treatments), list(found.added_seconds)
            treatments[index], seconds[index] = KEEP, 0.0
            peak = max(self.line(treatments, found.window))
            if peak <= bound_bytes:
                found = ActivationChoice(tuple(treatments), found.window, peak, 0.0, tuple(seconds))
        return found


def _with_flights(costs: Mapping[int, LayerCost], runs: Mapping[int, int]) -> list[LayerCost]:
    """Return the costs with so many runs of each layer in flight."""
    return [
        cost._replace(in_flight=math.ceil(runs[layer] / cost.runs)) for layer, cost in costs.items()
    ]


def _run_bytes(cost: LayerCost, treatment: Treatment) -> RunBytes:
    again = cost.kept_bytes if treatment.recompute else 0.0
    return RunBytes(cost.moving(treatment.recompute), cost.staying(treatment.recompute), again)


def _in_flight(order: RankOrder) -> list[Counter[int]]:
    """Return how many runs of each layer stand between forward and backward, during each event."""
    flights: list[Counter[int]] = []
    now: Counter[int] = Counter()
    for event in order.events:
        layer = order.layers[event.run]
        now[layer] += event.is_forward
        flights.append(now.copy())
        now[layer] -= not event.is_forward
    return flights


def deferred_line(
    order: RankOrder, costs: Mapping[int, LayerCost], limit_bytes: float | None
) -> list[float]:
    """Return the bytes that wait for weight gradients, during each event.

    A run's are there from the begin of its backward.
    """
    line = [0.0] * len(order.events)
    for stage in set(order.stages):
        change = [0.0] * (len(order.events) + 1)
        for place, event in enumerate(order.events):
            if event.is_forward or order.stages[event.run] != stage:
                continue
            size = costs[order.layers[event.run]].deferred_bytes
            change[place] += size
            change[order.weight_places[event.run]] -= size
        of_stage = {
            layer for layer, home in zip(order.layers, order.stages, strict=True) if home == stage
        }
        microbatch = sum(costs[layer].runs * costs[layer].deferred_bytes for layer in of_stage)
        most = math.inf if limit_bytes is None else limit_bytes + microbatch
        waiting = 0.0
        for place in range(len(line)):
            waiting += change[place]
            line[place] += min(waiting, most)
    return line


def _host_bytes(
    flights: Sequence[Counter[int]], costs: Mapping[int, LayerCost], choice: ActivationChoice
) -> float:
    """Return the most bytes that wait on the host."""
    moved = {
        layer: costs[layer].moving(treatment.recompute)
        for layer, treatment in zip(costs, choice.treatments, strict=True)
        if treatment.move
    }
    return max(sum(flight[layer] * size for layer, size in moved.items()) for flight in flights)


def _fullest(line: Sequence[float]) -> int:
    return max(range(len(line)), key=line.__getitem__)
