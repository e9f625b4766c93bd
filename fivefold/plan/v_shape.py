"""Schedules on a V: two chunks a rank, the second in reverse, so first and last stage share a rank.

The loss gradient starts where the first chunk lives, which balances memory over the ranks. ZB-V
(arXiv 2401.10241, section 6) holds as much as 1F1B and has no bubble at equal costs. V-Half and
V-Min (arXiv 2405.15362) hold about a half and a third of it: they repeat one building block, the
path of a single microbatch, every six time units, and the closer its passes lie, the less a rank
holds.

This module orders forwards and input gradients; weight gradients are then placed by cost under the
order's own memory (`list_schedule`).
"""

import itertools

from fivefold.plan.list_schedule import ListScheduler, Policy
from fivefold.plan.schedule import Action, Kind, Schedule, v_placement
from fivefold.plan.simulate import StageCosts, even_costs, simulate

_PERIOD = 6  # two chunks x (F, I, W) at one time unit each
_POLICIES = (Policy(), Policy(0.25), Policy(1.0))


def zb_v(ranks: int, microbatches: int, costs: StageCosts | None = None) -> Schedule:
    """Return ZB-V: at most 2 x ranks chunk microbatches held, no bubble at equal costs.

    The order is made for at least 2 x ranks microbatches; those beyond `microbatches` are left
    out, and what remains keeps its order, so it stays valid and holds no more.
    """
    costs = costs or even_costs(2 * ranks)
    whole = max(microbatches, 2 * ranks)
    orders = [
        [action for action in _zb_v_order(rank, ranks, whole) if action.microbatch < microbatches]
        for rank in range(ranks)
    ]
    cap = 2 * ranks * max(costs.memory)
    return _with_weight_gradients("zb_v", orders, microbatches, costs, cap)


def v_half(ranks: int, microbatches: int, costs: StageCosts | None = None) -> Schedule:
    """Return V-Half: about ranks + 2 chunk microbatches held, half of 1F1B's."""
    return _from_block("v_half", ranks, microbatches, costs, lifespan=3)


def v_min(ranks: int, microbatches: int, costs: StageCosts | None = None) -> Schedule:
    """Return V-Min: about 2/3 x ranks + 2 chunk microbatches held, a third of 1F1B's."""
    return _from_block("v_min", ranks, microbatches, costs, lifespan=2)


def _from_block(
    name: str, ranks: int, microbatches: int, costs: StageCosts | None, *, lifespan: int
) -> Schedule:
    """Repeat the best building block under the memory of its steady round."""
    block, held = find_block(ranks, lifespan=lifespan)
    costs = costs or even_costs(2 * ranks)
    orders = repeat_block(block, ranks, microbatches)
    return _with_weight_gradients(name, orders, microbatches, costs, held * max(costs.memory))


def _with_weight_gradients(
    name: str,
    orders: list[list[Action]],
    microbatches: int,
    costs: StageCosts,
    cap: float,
) -> Schedule:
    """Place W where ranks would idle, while no rank holds more than `cap`."""
    ranks = len(orders)
    placement = v_placement(ranks)
    candidates = []
    for policy in _POLICIES:
        run = ListScheduler(placement, microbatches, costs, (cap,) * ranks, policy, orders)
        schedule = Schedule(name, microbatches, placement, run.run())
        candidates.append((simulate(schedule, costs).longest_span, schedule))
    return min(candidates, key=lambda pair: pair[0])[1]


def _zb_v_order(rank: int, ranks: int, microbatches: int) -> list[Action]:
    """Order one rank of ZB-V.

    First forwards of the lower chunk until the upper one comes back, then both chunks in turn,
    then the upper chunk's first backwards, then the steady round of all four, then what is left.
    """
    row: list[Action] = []
    counts = {"F0": 0, "F1": 0, "I0": 0, "I1": 0}
    stages = (rank, 2 * ranks - 1 - rank)

    def do(*names: str) -> None:
        for name in names:
            kind: Kind = "F" if name[0] == "F" else "I"
            if counts[name] < microbatches:
                row.append(Action(stages[int(name[1])], kind, counts[name]))
                counts[name] += 1

    do(*["F0"] * (2 * (ranks - rank) - 1))
    do(*["F1", "F0"] * rank)
    do(*["F1", "I1"] * (ranks - rank))
    while counts["F1"] < microbatches:
        do("F0", "I0", "F1", "I1")
    do(*["I0", "I1"] * rank)
    do(*["I0"] * (ranks - rank))
    return row


Block = dict[tuple[Kind, int], list[int]]
"""Time units at which microbatch 0 passes each rank, by kind and chunk."""


def find_block(ranks: int, *, lifespan: int) -> tuple[Block, int]:
    """Search the building block whose passes never meet when repeated every period.

    `lifespan` is the time units that a hop adds to how long a chunk's activation lives (V-Min 2,
    V-Half 3). Returns the block that holds the least, and what its busiest rank holds in chunk
    microbatches, weight gradients placed in the two free units of every period.
    """
    best: tuple[int, int, Block] | None = None
    for down, up in itertools.product(range(1, lifespan), repeat=2):
        for waits in itertools.product(range(1, _PERIOD + 1), repeat=3):
            block = _lay_block(ranks, (down, up, lifespan - up, lifespan - down), waits)
            if any(
                len({times[rank] % _PERIOD for times in block.values()}) < len(block)
                for rank in range(ranks)
            ):
                continue
            held = max(_held_in_steady_round(block, rank) for rank in range(ranks))
            length = max(block["I", 0])
            if best is None or (held, length) < best[:2]:
                best = held, length, block
    assert best is not None, f"no repeating V block for {ranks} ranks"
    return best[2], best[0]


def _held_in_steady_round(block: Block, rank: int) -> int:
    """Count the chunk microbatches that a rank holds at most once the block repeats for ever."""
    free = {*range(_PERIOD)} - {times[rank] % _PERIOD for times in block.values()}
    ends = {}
    for chunk in sorted((0, 1), key=lambda chunk: block["I", chunk][rank]):
        weight = block["I", chunk][rank] + 1
        while weight % _PERIOD not in free:
            weight += 1
        free.remove(weight % _PERIOD)
        ends[chunk] = weight + 1
    return max(
        sum((unit - block["F", c][rank]) // _PERIOD - (unit - ends[c]) // _PERIOD for c in (0, 1))
        for unit in range(_PERIOD)
    )


def _lay_block(ranks: int, hops: tuple[int, ...], waits: tuple[int, ...]) -> Block:
    """Lay one microbatch's four passes; `waits` separate them where they turn."""
    last = ranks - 1
    first_down = [rank * hops[0] for rank in range(ranks)]
    up = [first_down[last] + waits[0] + (last - rank) * hops[1] for rank in range(ranks)]
    back_down = [up[0] + waits[1] + rank * hops[2] for rank in range(ranks)]
    back_up = [back_down[last] + waits[2] + (last - rank) * hops[3] for rank in range(ranks)]
    return {("F", 0): first_down, ("F", 1): up, ("I", 1): back_down, ("I", 0): back_up}


def repeat_block(block: Block, ranks: int, microbatches: int) -> list[list[Action]]:
    """Repeat the block for every microbatch and read off each rank's order."""
    rows = []
    for rank in range(ranks):
        stages = (rank, 2 * ranks - 1 - rank)
        events = [
            (times[rank] + _PERIOD * microbatch, Action(stages[chunk], kind, microbatch))
            for (kind, chunk), times in block.items()
            for microbatch in range(microbatches)
        ]
        rows.append([action for _, action in sorted(events)])
    return rows
