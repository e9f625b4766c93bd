"""Tensor, expert and context parallelism in training, as the loop spreads it, against one process.

Wider meshes and the later stages' objectives are in `test_tensor_training` and `test_context`, the
command itself in `test_launch`.
"""

from pathlib import Path

import pytest
from spread_training import Run, train_in_turns, train_one_conversation, train_spread
from team import Team
from test_pipeline_training import check_all
from test_zero import EXACT, Trained, train_alone
from tiny_training import Mode, Setting, copies, furthest
from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.stage import OneProcess

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

TP2 = ParallelConfig(tp=2)
EP2 = ParallelConfig(dp=2, ep=2)
CP2 = ParallelConfig(cp=2)


@pytest.mark.slow
def test_a_training_that_moves_from_mesh_to_mesh_equals_one_process(
    pair: Team, tmp_path: Path
) -> None:
    setting = Setting(mode="sparse")
    turns = [(CP2, range(2)), (TP2, range(2, 4)), (EP2, range(4, 5))]
    ranks = pair.run(train_in_turns, setting, turns, tmp_path, seconds=180)
    for (_, steps), found in zip(turns, zip(*ranks, strict=True), strict=True):
        whole = train_alone(setting, steps.stop)
        wanted = Trained(whole.results[steps.start :], whole.weights, whole.state, {})
        check_all([*found], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(dp=2, cp=2),
        ParallelConfig(dp=2, cp=2, zero=0, cp_order="zigzag"),
        ParallelConfig(dp=2, cp=2, zero=2, cp_form="heads", bucket_bytes=2**15),
        ParallelConfig(cp=2, dp=2, ep=2),
        ParallelConfig(cp=2, dp=2, ep=4, ranks_per_node=2),
        ParallelConfig(cp=4, cp_form="heads", ranks_per_node=2),
        ParallelConfig(tp=2, dp=2, ep=4, ranks_per_node=2),
    ],
    ids=["dp_cp", "zero_0", "zero_2", "cp_ep", "cp_dp_ep", "two_phases", "tp_dp_ep"],
)
def test_five_steps_of_four_ranks_equal_one_process(
    four: Team, mode: Mode, config: ParallelConfig
) -> None:
    setting = Setting(mode=mode)
    wanted = train_alone(setting, 5)
    check_all(four.run(train_spread, setting, config, 5, seconds=180), wanted)


@pytest.mark.parametrize("config", [TP2, EP2, CP2, ParallelConfig(fsdp=2)])
def test_a_step_with_fewer_rows_than_ranks_equals_one_process(
    pair: Team, config: ParallelConfig
) -> None:
    setting = Setting()
    wanted = train_one_conversation(None, setting, ParallelConfig())
    check_all(pair.run(train_one_conversation, setting, config), wanted)


def train_phases(world: World | None, setting: Setting, config: ParallelConfig) -> Trained:
    """Take two steps, between which the stage changes the rotary base of its model."""
    run = Run(OneProcess() if world is None else Mesh(config, world), setting)
    results = run.take_steps(range(1))
    run.plain.set_rope_theta(50.0)
    # As exact as the rest of the model.
    run.plain.speeds_R = run.plain.speeds_R.double()
    return run.end(results + run.take_steps(range(1, 2)))


@pytest.mark.parametrize("config", [TP2, CP2])
def test_a_phase_changes_the_rotary_base_on_all_ranks(pair: Team, config: ParallelConfig) -> None:
    setting = Setting()
    wanted = train_phases(None, setting, ParallelConfig())
    check_all(pair.run(train_phases, setting, config), wanted)


def look_between(
    world: World, setting: Setting, config: ParallelConfig
) -> tuple[Trained, dict[str, Tensor]]:
    """Take two steps, between which one rank has the whole plain model to look at."""
    run = Run(Mesh(config, world), setting)
    results = run.take_steps(range(1))
    with run.spreading.one_looks() as is_looking:
        seen = copies(run.plain.state_dict()) if is_looking else {}
    return run.end(results + run.take_steps(range(1, 2))), seen


@pytest.mark.parametrize("config", [TP2, EP2, CP2])
def test_one_rank_sees_the_whole_model_in_between(pair: Team, config: ParallelConfig) -> None:
    setting = Setting()
    after, wanted = train_alone(setting, 1), train_alone(setting, 2)
    found = pair.run(look_between, setting, config)
    check_all([trained for trained, _ in found], wanted)
    assert [bool(seen) for _, seen in found] == [True, False]
    assert furthest(found[0][1], after.weights)[0] <= EXACT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dp": 2, "ep": 2, "zero": 0}, "`zero` 1 or 2, or `fsdp`, with `ep=2`"),
        ({"tp": 2, "zero": 0}, "`zero` 1 or 2, or `fsdp`, with `tp=2`"),
    ],
)
def test_parts_without_rows_of_their_own_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**fields).check_trained()  # pyright: ignore[reportArgumentType]
