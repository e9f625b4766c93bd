"""Cost-aware schedules under a memory cap: the best of a few passes of list scheduling.

The zero-bubble paper (arXiv 2401.10241, section 3.1) searches the same way; its ZB-1p and ZB-2p
are this search with a cap of one and of two times 1F1B's memory. Some twenty policies are played
and the fastest table under the simulator wins. Handmade tables that fit the cap compete too, so
the result is never slower than they are.
"""

import itertools
from collections.abc import Iterable

from fivefold.errors import ConfigError
from fivefold.plan.list_schedule import ListScheduler, Policy
from fivefold.plan.schedule import Schedule, loop_placement
from fivefold.plan.simulate import StageCosts, Timeline, simulate
from fivefold.plan.zero_bubble import zb_h1, zb_h2

POLICIES = tuple(
    Policy(patience, ahead)
    for patience, ahead in itertools.product(
        (0.0, 0.25, 1.0), (None, 1.0, 1.5, 1.75, 2.0, 2.1, 2.5)
    )
)


def automatic(
    placement: tuple[int, ...], microbatches: int, costs: StageCosts, caps: tuple[float, ...]
) -> Schedule:
    """Return the fastest table found whose rank r never holds more than `caps[r]`.

    Raises:
        ConfigError: some rank cannot hold even one microbatch.
    """
    best = search_policies(placement, microbatches, costs, caps)
    if placement != loop_placement(len(caps)):
        return best
    timelines = [simulate(best, costs)]
    for make in (zb_h1, zb_h2):
        timeline = simulate(make(len(caps), microbatches), costs)
        if all(peak <= cap for peak, cap in zip(timeline.peak_memory, caps, strict=True)):
            timelines.append(timeline)
    return _rename(min(timelines, key=lambda timeline: timeline.longest_span))


def search_policies(
    placement: tuple[int, ...],
    microbatches: int,
    costs: StageCosts,
    caps: tuple[float, ...],
    policies: Iterable[Policy] = POLICIES,
) -> Schedule:
    """Return the fastest table that list scheduling finds within `caps`, as `automatic` does."""
    _check_caps(placement, costs, caps)
    timelines = []
    for policy in policies:
        rows = ListScheduler(placement, microbatches, costs, caps, policy).run()
        timelines.append(simulate(Schedule("automatic", microbatches, placement, rows), costs))
    return min(timelines, key=lambda timeline: timeline.longest_span).schedule


def _rename(timeline: Timeline) -> Schedule:
    table = timeline.schedule
    return Schedule("automatic", table.microbatches, table.rank_of_stage, table.actions)


def _check_caps(placement: tuple[int, ...], costs: StageCosts, caps: tuple[float, ...]) -> None:
    for rank, cap in enumerate(caps):
        homes = enumerate(placement)
        least = sum(costs.memory[stage] for stage, home in homes if home == rank)
        if least > cap * (1 + 1e-9):
            raise ConfigError(
                expected=f"memory for at least one microbatch on rank {rank} ({least:g} units)",
                found=f"a cap of {cap:g}",
                fix="Raise the cap, recompute activations or cut the microbatch",
            )
