"""Moved activations under a schedule's table: the bits of one process, the bytes of the paper."""

import functools
from typing import Any

import pytest
import torch
from piped import EMBEDDING, ONE_BY_ONE, Case, Piped, cut_model, pipeline_group, whole_step
from team import Team, World

from fivefold.models.transformer import BlockOutput
from fivefold.parallel.offload import Offloader
from fivefold.plan.block_order import RunBytes, block_events, held_bytes

pytestmark = pytest.mark.dist


def step(piped: Piped, rank: int, moving: bool, window: int) -> tuple[Offloader, list[tuple]]:
    """Step the stages; return bytes saved and sent of each block run."""
    blocks = {s: len(stage.layers) + stage.part.mtp_depths for s, stage in piped.stages.items()}
    events = block_events(piped.runtime.schedule.actions[rank], blocks)
    layers = range(100) if moving else ()
    offloader = Offloader(layers, 1, torch.device("cpu"), window=window, least_bytes=64)
    seen: list[tuple] = []

    def run(*arguments: Any) -> BlockOutput:
        ledger = offloader.ledger
        before = ledger.held_bytes, ledger.out_bytes
        output = offloader.run(*arguments)
        seen.append((ledger.held_bytes - before[0], ledger.out_bytes - before[1]))
        return output

    for stage in piped.stages.values():
        for name, block in stage.layers.items():
            vars(block)["forward"] = functools.partial(run, block, int(name))
        if stage.mtp is not None:
            vars(stage.mtp.block)["forward"] = functools.partial(run, stage.mtp.block, 99)
    offloader.follow(events)
    piped.runtime.step(piped.batches(ONE_BY_ONE))
    offloader.ledger.check_idle()
    return offloader, seen


def moved(world: World, case: Case, window: int) -> tuple[list[str], list[str], Any]:
    """Return gradients seen, those that differ from one process, and the ledger beside the paper's
    figures."""
    group = pipeline_group(world, case.ranks)
    _, wanted = whole_step(case)
    _, kept = step(cut_model(case, group), group.rank, False, window)
    piped = cut_model(case, group)
    offloader, seen = step(piped, group.rank, True, window)
    if piped.shared is not None:
        piped.shared.add_gradients()
    found = piped.gradients()
    blocks = {s: len(stage.layers) + stage.part.mtp_depths for s, stage in piped.stages.items()}
    events = block_events(piped.runtime.schedule.actions[group.rank], blocks)
    runs = [RunBytes(out, all_ - out) for (all_, _), (_, out) in zip(kept, seen, strict=True)]
    paper = max(held_bytes(events, runs, range(len(runs)), window), default=0)
    everything = max(held_bytes(events, runs, (), window), default=0)
    ledger = offloader.ledger
    figures = ledger.peak_bytes, paper, everything, ledger.out_bytes, ledger.in_bytes, ledger.late
    differing = [name for name, value in found.items() if not torch.equal(value, wanted[name])]
    return sorted(found), differing, figures


@pytest.mark.parametrize(
    ("schedule", "window"),
    [
        ("zb_v", 1),
        *(
            pytest.param(schedule, window, marks=pytest.mark.slow)
            for schedule, window in [("1f1b", 1), ("1f1b", 2), ("interleaved", 1)]
        ),
    ],
)
def test_two_ranks_move_by_their_table(pair: Team, schedule: str, window: int) -> None:
    case = Case(schedule, indexer="sparse", layers=4, mtp="last")
    results = pair.run(moved, case, window)
    assert {name for names, _, _ in results for name in names} == set(whole_step(case)[1])
    for _, differing, (peak, paper, everything, out, back, late) in results:
        assert set(differing) <= {EMBEDDING}
        assert peak == paper <= everything
        assert out == back
        assert late == 0
    # The first rank has more in flight, and gains more.
    first = results[0][2]
    assert first[3] > 0
    assert first[0] < 0.9 * first[2]
