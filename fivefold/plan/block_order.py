"""When a rank runs which block, forward and back: what activations that leave the device go by.

A run is one forward of one block on one microbatch; runs count up in the order of their forwards.
A schedule's table fixes the order of the backwards too, and with it where copies go: a run's copy
to the host has until the end of the `window`-th event after its forward, its way back begins with
the `window`-th event before its backward. Between the two it is not on the device, if there is
anything between. `held_bytes` is what the ledger of `parallel.offload` counts, on paper.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from fivefold.plan.schedule import Action


class BlockEvent(NamedTuple):
    """One block's forward or backward."""

    is_forward: bool
    run: int


class RunBytes(NamedTuple):
    """What autograd keeps of one run."""

    moving: float
    """Bytes that may leave the device."""
    staying: float
    """Bytes that may not: small, or needed elsewhere."""
    again: float = 0.0
    """Bytes beside them while its backward runs: of a run that is computed again."""


def block_events(row: Sequence[Action], blocks: Mapping[int, int]) -> list[BlockEvent]:
    """Return the events of a rank's row, `blocks[s]` blocks being run for a microbatch of stage s.

    The backward of a stage passes its blocks in reverse; a weight gradient passes none.
    """
    events: list[BlockEvent] = []
    first: dict[tuple[int, int], int] = {}
    runs = 0
    for stage, kind, microbatch in row:
        count = blocks[stage]
        if kind == "F":
            first[stage, microbatch] = runs
            events += [BlockEvent(True, run) for run in range(runs, runs + count)]
            runs += count
        elif kind != "W":
            begin = first[stage, microbatch]
            events += [BlockEvent(False, run) for run in reversed(range(begin, begin + count))]
    return events


def weight_places(row: Sequence[Action], blocks: Mapping[int, int]) -> list[int]:
    """Return for each run the place of the first event behind its weight gradients.

    A fused backward of a stage ends with those of all its blocks.
    """
    places: list[int] = []
    first: dict[tuple[int, int], int] = {}
    events = 0
    for stage, kind, microbatch in row:
        count = blocks[stage]
        events += 0 if kind == "W" else count
        if kind == "F":
            first[stage, microbatch] = len(places)
            places += [0] * count
        elif kind != "I":
            begin = first[stage, microbatch]
            places[begin : begin + count] = [events] * count
    return places


def one_pass(runs: int) -> list[BlockEvent]:
    """Return the events of a microbatch in one process: forward, and back at once."""
    forward = [BlockEvent(True, run) for run in range(runs)]
    return forward + [BlockEvent(False, run) for run in reversed(range(runs))]


def forward_places(events: Sequence[BlockEvent]) -> dict[int, int]:
    """Return the place of each run's forward."""
    return {event.run: place for place, event in enumerate(events) if event.is_forward}


def backward_places(events: Sequence[BlockEvent]) -> dict[int, int]:
    """Return the place of each run's backward."""
    return {event.run: place for place, event in enumerate(events) if not event.is_forward}


def runs_that_leave(events: Sequence[BlockEvent], window: int) -> set[int]:
    """Return the runs that are off the device for an event at least."""
    forward, backward = forward_places(events), backward_places(events)
    return {run for run in backward if backward[run] - forward[run] > 2 * window + 1}


def held_bytes(
    events: Sequence[BlockEvent],
    runs: Sequence[RunBytes],
    moving: Collection[int],
    window: int,
) -> list[float]:
    """Return the most bytes that the device holds for the runs during each event.

    Those of `moving` leave, where there is time for it. Weight gradients that are put off are not
    among them.
    """
    forward, backward = forward_places(events), backward_places(events)
    leaving = runs_that_leave(events, window) & set(moving)
    change = [0.0] * (len(events) + 1)
    for run, (moved, stayed, again) in enumerate(runs):
        begin, end = forward[run], backward[run] + 1
        change[end - 1] += again
        change[end] -= again
        change[begin] += stayed + moved
        change[end] -= stayed + moved
        if run in leaving:
            change[begin + window + 1] -= moved
            change[end - 1 - window] += moved
    return list(itertools.accumulate(change[:-1]))
