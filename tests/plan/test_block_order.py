"""The order of blocks that a table means, and what moved activations leave on the device."""

import random

import pytest

from fivefold.plan.block_order import (
    RunBytes,
    block_events,
    held_bytes,
    one_pass,
    runs_that_leave,
)
from fivefold.plan.make_schedule import NAMES, make_schedule


def test_one_pass_goes_back_the_way_it_came() -> None:
    assert [event.run for event in one_pass(3)] == [0, 1, 2, 2, 1, 0]


def test_events_of_a_recorded_table() -> None:
    table = make_schedule("1f1b", 2, 3)
    assert [str(action) for action in table.actions[0]] == [
        "0F0",
        "0F1",
        "0B0",
        "0F2",
        "0B1",
        "0B2",
    ]
    events = block_events(table.actions[0], {0: 2})
    assert [("F" if event.is_forward else "B") + str(event.run) for event in events] == [
        *("F0", "F1", "F2", "F3", "B1", "B0"),
        *("F4", "F5", "B3", "B2", "B5", "B4"),
    ]
    # The last rank's backward follows its forward: with two blocks nothing is away between.
    last = block_events(table.actions[1], {1: 2})
    assert runs_that_leave(last, 1) == set()
    assert runs_that_leave(events, 1) == {0, 2, 3, 4}


@pytest.mark.parametrize("name", NAMES)
def test_every_table_passes_each_block_forward_and_back(name: str) -> None:
    table = make_schedule(name, 4, 6)
    blocks = {stage: 1 + stage % 3 for stage in range(table.stages)}
    for row in table.actions:
        events = block_events(row, blocks)
        runs = sum(blocks[action.stage] for action in row if action.kind == "F")
        assert [event.run for event in events if event.is_forward] == list(range(runs))
        assert sorted(event.run for event in events if not event.is_forward) == list(range(runs))


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("name", ["1f1b", "zb_v", "interleaved"])
def test_held_bytes_are_those_of_a_machine_that_moves_step_by_step(name: str, window: int) -> None:
    generator = random.Random(window)
    for row in make_schedule(name, 4, 6).actions:
        events = block_events(row, dict.fromkeys(range(8), 2))
        count = len(events) // 2
        runs = [RunBytes(generator.randint(1, 9), generator.randint(0, 2)) for _ in range(count)]
        moving = {run for run in range(count) if generator.random() < 0.7}
        leaving = runs_that_leave(events, window) & moving
        line = held_bytes(events, runs, moving, window)
        on_device: dict[int, float] = {}
        since: dict[int, int] = {}
        for place, event in enumerate(events):
            for run in [r for r in since if r in leaving and place - since[r] > window]:
                on_device[run] = runs[run].staying
            for ahead in events[place : place + window + 1]:
                if not ahead.is_forward and ahead.run in since:
                    on_device[ahead.run] = sum(runs[ahead.run])
                    since.pop(ahead.run)
            if event.is_forward:
                on_device[event.run], since[event.run] = sum(runs[event.run]), place
            assert sum(on_device.values()) == line[place]
            if not event.is_forward:
                del on_device[event.run]
        assert not on_device


def test_moving_bounds_what_a_rank_with_many_microbatches_in_flight_holds() -> None:
    events = block_events(make_schedule("1f1b", 8, 16).actions[0], {0: 4})
    runs = [RunBytes(10.0, 1.0)] * (len(events) // 2)
    everything = max(held_bytes(events, runs, (), 1))
    moved = max(held_bytes(events, runs, range(len(runs)), 1))
    assert everything == 8 * 4 * 11
    # All the staying bytes, and three runs: on the way out, at work, on the way in.
    assert moved <= 8 * 4 * 1 + 3 * 10
