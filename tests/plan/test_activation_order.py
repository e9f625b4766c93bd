"""The knapsack of a rank's step: what the walk holds, against a machine that goes action by action.

Costs are random, tables are those that training runs.
"""

import itertools
import random
import re
from collections.abc import Mapping, Sequence

import pytest

from fivefold.plan.activation_choice import (
    KEEP,
    RECOMPUTE,
    ActivationBoundError,
    LayerCost,
    Treatment,
    choose_treatments,
)
from fivefold.plan.activation_order import (
    RankOrder,
    choose_in_order,
    deferred_line,
    held_line,
    pass_order,
    step_order,
)
from fivefold.plan.make_schedule import make_schedule
from fivefold.plan.schedule import Action

NAMES = ("1f1b", "zb_h1", "zb_v", "interleaved")
BANDWIDTH = 10.0


def random_costs(layers: Sequence[int], seed: int) -> dict[int, LayerCost]:
    generator, costs = random.Random(seed), {}
    for layer in layers:
        kept = float(generator.randint(20, 200))
        costs[layer] = LayerCost(
            kept_bytes=kept,
            input_bytes=float(generator.randint(2, 10)),
            forward=generator.uniform(1, 2),
            backward=generator.uniform(2, 4),
            runs=2 if layer == 9 else 1,
            staying_bytes=float(generator.randint(0, 4)),
            staying_input_bytes=float(generator.randint(0, 2)),
            deferred_bytes=float(generator.randint(0, 40)),
        )
    return costs


def rank_case(
    name: str, rank: int, microbatches: int = 5
) -> tuple[Sequence[Action], dict[int, list[int]], RankOrder]:
    """Return a rank's row, the layers of its stages, the last of all with the MTP layer's runs."""
    table = make_schedule(name, 2, microbatches)
    local = [stage for stage, home in enumerate(table.rank_of_stage) if home == rank]
    layers = {stage: [2 * stage, 2 * stage + 1] for stage in local}
    if table.stages - 1 in layers:
        layers[table.stages - 1] = [2 * (table.stages - 1), 9, 9]
    row = table.actions[rank]
    return row, layers, step_order(row, layers)


def walk(
    row: Sequence[Action],
    layers: Mapping[int, Sequence[int]],
    costs: Mapping[int, LayerCost],
    treated: Mapping[int, Treatment],
) -> float:
    """Return the most that a machine without a link holds, action by action."""
    held: dict[tuple[int, int, int], float] = {}
    waiting: dict[tuple[int, int], float] = {}
    most = 0.0
    for stage, kind, microbatch in row:
        runs = list(enumerate(layers[stage]))
        if kind == "W":
            del waiting[stage, microbatch]
            continue
        for place, layer in runs if kind == "F" else reversed(runs):
            cost, again = costs[layer], treated[layer].recompute
            key = stage, microbatch, place
            if kind == "F":
                held[key] = cost.input_bytes if again else cost.kept_bytes
                most = max(most, sum(held.values()) + sum(waiting.values()))
                continue
            before = waiting.get((stage, microbatch), 0.0)
            waiting[stage, microbatch] = before + cost.deferred_bytes
            now = sum(held.values()) + sum(waiting.values()) + again * cost.kept_bytes
            most = max(most, now)
            del held[key]
        if kind == "B":
            del waiting[stage, microbatch]
    assert not held
    assert not waiting
    return most


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_line_is_what_a_machine_holds(name: str, rank: int) -> None:
    row, layers, order = rank_case(name, rank)
    own = list(dict.fromkeys(order.layers))
    for seed in range(6):
        costs, generator = random_costs(own, seed), random.Random(seed)
        treated = {layer: generator.choice((KEEP, RECOMPUTE)) for layer in own}
        treatments, deferred = list(treated.values()), deferred_line(order, costs, None)
        line = held_line(order, costs, treatments, 1, deferred)
        assert max(line) == walk(row, layers, costs, treated)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [0, 1])
def test_choice_holds_its_bound_and_is_mostly_the_best_combination(name: str, rank: int) -> None:
    row, layers, order = rank_case(name, rank)
    own = list(dict.fromkeys(order.layers))
    lost = []
    for seed in range(12):
        costs = random_costs(own, seed)
        found = []
        for combination in itertools.product((KEEP, RECOMPUTE), repeat=len(own)):
            treated = dict(zip(own, combination, strict=True))
            seconds = sum(costs[x].runs * costs[x].forward * treated[x].recompute for x in own)
            found.append((walk(row, layers, costs, treated), seconds))
        least, most = min(held for held, _ in found), found[0][0]
        bound = least + random.Random(seed).uniform(0.1, 1) * (most - least)
        best = min(seconds for held, seconds in found if held <= bound)
        choice = choose_in_order(costs, order, bound)
        treated = dict(zip(own, choice.treatments, strict=True))
        assert choice.held_bytes == walk(row, layers, costs, treated) <= bound
        lost.append(choice.seconds - best)
    # The knapsack adds up what need not come together, and may miss the best: most on the last
    # rank, which goes back at once.
    assert min(lost) >= -1e-9
    assert sum(abs(each) < 1e-9 for each in lost) >= (5 if rank else 8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [0, 1])
def test_moved_layers_keep_the_bound_too(name: str, rank: int) -> None:
    _, _, order = rank_case(name, rank, microbatches=8)
    own = list(dict.fromkeys(order.layers))
    moves = 0
    for seed in range(6):
        costs = random_costs(own, seed)
        everything = choose_in_order(costs, order, 1e9).held_bytes
        bound = 0.95 * everything
        try:
            choice = choose_in_order(costs, order, bound, host_bandwidth=1e9)
        except ActivationBoundError:
            # The last rank goes back at once: nothing has the time to leave.
            assert rank == 1
            continue
        deferred = deferred_line(order, costs, None)
        line = held_line(order, costs, choice.treatments, choice.window, deferred)
        assert max(line) == choice.held_bytes <= bound
        moves += any(treatment.move for treatment in choice.treatments)
        assert (choice.host_bytes > 0) == any(treatment.move for treatment in choice.treatments)
    assert moves or rank == 1


def test_one_pass_is_the_plain_knapsack() -> None:
    order = pass_order([0, 1, 2, 3, 9, 9])
    for seed in range(6):
        costs = random_costs([0, 1, 2, 3, 9], seed)
        plain = {layer: cost._replace(deferred_bytes=0.0) for layer, cost in costs.items()}
        bound = 0.6 * sum(cost.runs * cost.kept_bytes for cost in costs.values())
        expected = choose_treatments(list(plain.values()), bound, host_bandwidth=BANDWIDTH)
        found = choose_in_order(plain, order, bound, host_bandwidth=BANDWIDTH)
        assert found.seconds <= expected.seconds
        assert found.held_bytes <= bound


def test_stages_of_a_rank_are_not_at_their_fullest_together() -> None:
    # By the maxima of both stages the rank would hold a third more than it does.
    _, _, order = rank_case("zb_v", 0, microbatches=8)
    costs = {
        layer: LayerCost(10.0, 1.0, 1.0, 2.0, runs=2 if layer == 9 else 1)
        for layer in dict.fromkeys(order.layers)
    }
    held = choose_in_order(costs, order, 1e9).held_bytes
    flights = {
        layer: max(
            sum(
                (1 if event.is_forward else -1) * (order.layers[event.run] == layer)
                for event in order.events[: place + 1]
            )
            for place in range(len(order.events))
        )
        for layer in costs
    }
    assert sum(10.0 * count for count in flights.values()) > held
    choice = choose_in_order(costs, order, held)
    assert set(choice.treatments) == {KEEP}


def test_a_limit_on_what_is_put_off_counts() -> None:
    _, _, order = rank_case("zb_h1", 1, microbatches=8)
    own = list(dict.fromkeys(order.layers))
    costs = {layer: LayerCost(10.0, 1.0, 1.0, 2.0, deferred_bytes=8.0) for layer in own}
    free = max(deferred_line(order, costs, None))
    limited = max(deferred_line(order, costs, 4.0))
    # Those of one microbatch of two layers, and the limit.
    assert limited == 4.0 + 16.0 < free


def test_too_small_a_bound_names_what_is_wanted() -> None:
    _, _, order = rank_case("1f1b", 0)
    costs = random_costs(list(dict.fromkeys(order.layers)), 0)
    with pytest.raises(
        ActivationBoundError, match="that was found; found a bound of 10 bytes"
    ) as no:
        choose_in_order(costs, order, 10.0)
    (least,) = re.findall(r"room for ([\d,]+) bytes", str(no.value))
    choice = choose_in_order(costs, order, float(least.replace(",", "")))
    assert choice.held_bytes <= float(least.replace(",", ""))
