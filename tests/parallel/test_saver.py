"""States of one mesh on another: the same tensors, the same next steps; a crash leaves the last."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import NoReturn

import pytest
from team import CaseError, Team
from tiny_training import Setting, copies, furthest, make_model, rows_of_step
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.tensor import DTensor

from fivefold.errors import StorageError
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import ALONE, Mesh, World
from fivefold.stage import OneProcess
from fivefold.train.balance import BalanceTracker
from fivefold.train.checkpoint import load_state, save_state, saved_steps
from fivefold.train.data_parallel import Spreading, spread
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.step import train_step

pytestmark = pytest.mark.dist

SETTING = Setting(mode="sparse")
ALONE_CONFIG = ParallelConfig()


def start(world: World, config: ParallelConfig) -> Spreading:
    model = make_model(SETTING)
    optimizer = HybridOptimizer(model.named_parameters(), model.config, SETTING.config.optimizer)
    ranks = OneProcess() if world.size == 1 else Mesh(config, world)
    return spread(model, optimizer, SETTING.config, ranks)


def take_steps(spreading: Spreading, steps: range) -> None:
    tracker = BalanceTracker(spreading.holder)
    for step in steps:
        train_step(
            spreading.compute,
            spreading.optimizer,
            tracker,
            SETTING.objective,
            rows_of_step(step),
            1000 * step,
            SETTING.config,
            microbatch_rows=2,
            sharding=spreading.sharding,
        )


def held(spreading: Spreading) -> dict[str, Tensor]:
    """Return weights, buffers and optimizer state as whole tensors; all ranks together."""
    state = {**spreading.holder.state_dict(), **spreading.optimizer.state_dict()}
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in state.items()}
    return copies(whole)


def train_and_save(
    world: World, config: ParallelConfig, directory: Path, first: int, last: int
) -> dict[str, Tensor]:
    """Go on from the newest state, if there is one, up to step `last`; save there."""
    spreading = start(world, config)
    found = load_state(directory, spreading.holder, spreading.optimizer, spreading.mesh)
    assert (found or {"step": 0})["step"] == first
    take_steps(spreading, range(first, last))
    save_state(
        directory,
        last,
        spreading.holder,
        spreading.optimizer,
        {"step": last},
        spreading.saver,
    )
    result = held(spreading)
    # What training does while a state is written must not reach it.
    take_steps(spreading, range(last, last + 1))
    spreading.end()
    return result


def load(world: World, config: ParallelConfig, directory: Path) -> dict[str, Tensor]:
    spreading = start(world, config)
    load_state(directory, spreading.holder, spreading.optimizer, spreading.mesh)
    return held(spreading)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            ParallelConfig(dp=2, zero=1), ParallelConfig(dp=2, zero=2), marks=pytest.mark.slow
        ),
        (ParallelConfig(dp=2, zero=2), ParallelConfig(fsdp=2)),
        pytest.param(ParallelConfig(fsdp=2), ParallelConfig(dp=2, zero=0), marks=pytest.mark.slow),
    ],
    ids=["zero1_to_zero2", "zero2_to_fsdp", "fsdp_to_zero0"],
)
def test_another_mesh_goes_on_exactly(
    pair: Team, tmp_path: Path, before: ParallelConfig, after: ParallelConfig
) -> None:
    wanted = train_and_save(ALONE, ALONE_CONFIG, tmp_path / "alone", 0, 4)
    saved = pair.run(train_and_save, before, tmp_path / "state", 0, 2)
    assert saved_steps(tmp_path / "state") == [2]
    # Loaded bit for bit, whatever the mesh; also by one process.
    for found in [
        *pair.run(load, after, tmp_path / "state"),
        load(ALONE, after, tmp_path / "state"),
    ]:
        assert furthest(found, saved[0])[0] == 0.0
    for found in pair.run(train_and_save, after, tmp_path / "state", 2, 4):
        assert furthest(found, wanted)[0] <= 1e-10


@pytest.mark.slow
def test_four_ranks_go_on_where_two_stopped(pair: Team, four: Team, tmp_path: Path) -> None:
    wanted = train_and_save(ALONE, ALONE_CONFIG, tmp_path / "alone", 0, 3)
    pair.run(train_and_save, ParallelConfig(dp=2, async_save=False), tmp_path / "state", 0, 2)
    for found in four.run(train_and_save, ParallelConfig(dp=4), tmp_path / "state", 2, 3):
        assert furthest(found, wanted)[0] <= 1e-10


def _die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def die_while_saving(world: World, config: ParallelConfig, directory: Path) -> None:
    """Rank 1 is killed when it has begun to write."""
    spreading = start(world, config)
    if world.rank == 1:
        setattr(FileSystemWriter, "write_data", _die)  # noqa: B010 - of another type
    save_state(directory, 9, spreading.holder, spreading.optimizer, {"step": 9}, spreading.saver)
    spreading.end()


def test_death_of_a_saver_keeps_the_last_state(tmp_path: Path) -> None:
    team, config = Team(2), ParallelConfig(dp=2)
    try:
        saved = team.run(train_and_save, config, tmp_path, 0, 1)
        with pytest.raises(CaseError, match="the process ended: -9"):
            team.run(die_while_saving, config, tmp_path, seconds=20)
        assert saved_steps(tmp_path) == [1]
        for found in team.run(load, config, tmp_path):
            assert furthest(found, saved[0])[0] == 0.0
        team.run(train_and_save, config, tmp_path, 1, 9)
        assert saved_steps(tmp_path) == [1, 9]
    finally:
        team.stop()


def save_without_a_name(world: World, config: ParallelConfig, directory: Path) -> str | None:
    """Save on a disk that is full when the state is to have its name; return what is raised."""
    spreading = start(world, config)
    assert spreading.saver is not None, "there are several ranks"
    move = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if path.is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return move(path, target)

    parts = spreading.holder, spreading.optimizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        try:
            save_state(directory, 3, *parts, {"step": 3}, spreading.saver)
            spreading.saver.finish()
        except StorageError as error:
            return str(error)
    return None


@pytest.mark.parametrize("async_save", [True, False])
def test_a_disk_that_refuses_the_name_is_told(pair: Team, tmp_path: Path, async_save: bool) -> None:
    config = ParallelConfig(dp=2, async_save=async_save)
    told, silent = pair.run(save_without_a_name, config, tmp_path)
    assert told is not None
    assert f"to be able to write `{tmp_path / 'step_00000003'}`" in told
    assert "No space left" in told
    assert silent is None
    assert saved_steps(tmp_path) == []


def die_after_a_save(world: World, config: ParallelConfig, directory: Path, steps: int) -> None:
    """Begin to save, train on without a look at the saver, and be killed when the name is there."""
    spreading = start(world, config)
    parts = spreading.holder, spreading.optimizer
    save_state(directory, 1, *parts, {"step": 1}, spreading.saver)
    take_steps(spreading, range(1, 1 + steps))
    while not saved_steps(directory):
        time.sleep(0.02)
    if spreading.mesh is not None:
        spreading.mesh.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_state_has_its_name_when_it_is_written_whatever_training_does(tmp_path: Path) -> None:
    team = Team(2)
    try:
        # A step that takes long, or hangs, comes to no end at which a state could be named.
        with pytest.raises(CaseError, match="the process ended: -9"):
            team.run(die_after_a_save, ParallelConfig(dp=2), tmp_path, 2)
    finally:
        team.stop()
    assert saved_steps(tmp_path) == [1]
    # What was trained after it is not in it.
    begin = held(start(ALONE, ALONE_CONFIG))
    assert furthest(load(ALONE, ALONE_CONFIG, tmp_path), begin)[0] == 0.0
