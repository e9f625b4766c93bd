"""Schedules by the clock: stages that sleep take as long on the real runtime as the plan says."""

import pytest
from piped import pipeline_group
from team import Team, World

from fivefold.parallel.pipeline.emulated import EmulatedRun
from fivefold.plan.make_schedule import make_schedule, rank_costs
from fivefold.plan.schedule import Schedule
from fivefold.plan.simulate import StageCosts, simulate

pytestmark = [pytest.mark.dist, pytest.mark.slow]

MICROBATCHES_A_RANK = 2
NAMES = ("1f1b", "zb_h1", "zb_v")


def planned(name: str, ranks: int) -> tuple[Schedule, StageCosts]:
    """Let a microbatch take long beside what a busy machine adds to a message."""
    costs = rank_costs(name, ranks, forward=0.08, input_gradient=0.08, weight_gradient=0.06)
    return make_schedule(name, ranks, MICROBATCHES_A_RANK * ranks, costs=costs), costs


def fastest_steps(world: World) -> list[float]:
    """Return the shortest of three steps of each schedule, after one to warm up."""
    group = pipeline_group(world, world.size)
    runs = [EmulatedRun(*planned(name, world.size), group) for name in NAMES]
    return [min([run.step() for _ in range(4)][1:]) for run in runs]


@pytest.mark.parametrize("ranks", [4, 8])
def test_steps_last_as_long_as_simulated(four: Team, eight: Team, ranks: int) -> None:
    team = four if ranks == 4 else eight
    found = team.run(fastest_steps, seconds=180)[0]
    plan = [simulate(*planned(name, ranks)).makespan for name in NAMES]
    for name, measured, simulated in zip(NAMES, found, plan, strict=True):
        assert simulated <= measured < 1.1 * simulated, f"{name}: {measured:.3f}, {simulated:.3f}"
    assert sorted(found, reverse=True) == found
    assert sorted(plan, reverse=True) == plan
