"""Activations on the host while several ranks train: the bits of kept ones, and what is refused."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from spread_training import Run
from team import Team
from test_pipeline_training import ROLLING, check_all
from test_zero import Trained, train_alone
from tiny_training import Mode, Setting, rows_of_step

from fivefold.errors import ConfigError
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.offload_ledger import OffloadLedger
from fivefold.train.compute import ComputeModel
from fivefold.train.piped import PipedModel

pytestmark = pytest.mark.dist

CP2 = ParallelConfig(cp=2)


class Moving(NamedTuple):
    """A training, and what its offloader saw."""

    trained: Trained
    ledger: OffloadLedger


def open_moving(world: World, setting: Setting, config: ParallelConfig, least_bytes: int) -> Run:
    """Open a training whose storages travel from `least_bytes` on: the model is small."""
    run = Run(Mesh(config, world), setting)
    offloader = compute_of(run).offloader
    assert offloader is not None
    offloader._least_bytes = least_bytes
    return run


def compute_of(run: Run) -> ComputeModel:
    compute = run.spreading.compute
    if isinstance(compute, PipedModel):
        compute = compute._compute
    assert isinstance(compute, ComputeModel)
    return compute


def train_moving(
    world: World,
    setting: Setting,
    config: ParallelConfig,
    least_bytes: int = 64,
    ends_with_one_row: bool = False,
) -> Moving:
    """Take two steps, and a third of a single row."""
    run = open_moving(world, setting, config, least_bytes)
    results = run.take_steps(range(2))
    if ends_with_one_row:
        row = rows_of_step(2).part(slice(0, 1))
        row = replace(row, weight=np.ones(row.ids.shape, np.float32))
        results.append(run.take_step(row, 2000))
    offloader = compute_of(run).offloader
    assert offloader is not None
    offloader.ledger.check_idle()
    return Moving(run.end(results), offloader.ledger)


def run_both(
    team: Team, setting: Setting, config: ParallelConfig, ends_with_one_row: bool
) -> tuple[list[Moving], list[Moving]]:
    """Train with and without moving; all bits are the same."""
    moved, kept = (
        team.run(train_moving, setting, config, least_bytes, ends_with_one_row)
        for least_bytes in (64, 10**9)
    )
    for mine, theirs in zip(moved, kept, strict=True):
        pairs = zip(mine.trained.results, theirs.trained.results, strict=True)
        assert all(a.measured == b.measured for a, b in pairs)
        for name, value in theirs.trained.weights.items():
            assert torch.equal(mine.trained.weights[name], value), name
        assert theirs.ledger.out_bytes == 0
        assert mine.ledger.late == 0
        assert mine.ledger.out_bytes > 0
    return moved, kept


@pytest.mark.parametrize("mode", ["warm_up", "sparse"])
def test_stages_that_move_train_as_stages_that_keep(four: Team, mode: Mode) -> None:
    """The data rank without a row of the last step runs a blank microbatch."""
    setting = Setting(mode=mode, offload=True, microbatch_rows=1)
    moved, kept = run_both(four, setting, ROLLING, True)
    peaks = [max(each.ledger.peak_bytes for each in one) for one in (moved, kept)]
    assert peaks[0] < 0.9 * peaks[1]


def test_tokens_that_ranks_share_move_too(pair: Team) -> None:
    run_both(pair, Setting(mode="sparse", offload=True), CP2, False)


def test_stages_that_move_and_recompute_train_as_one_process(pair: Team) -> None:
    setting = Setting(offload=(0, 1), recompute=(1,))
    found = pair.run(train_moving, setting, ParallelConfig(pp=2))
    assert found[0].ledger.out_bytes > 0
    check_all([one.trained for one in found], train_alone(Setting(), 2))


def train_bound(world: World, setting: Setting, config: ParallelConfig) -> tuple[Trained, int]:
    run = Run(Mesh(config, world), setting)
    results = run.take_steps(range(2))
    offloader = compute_of(run).offloader
    assert offloader is not None
    return run.end(results), offloader.ledger.peak_bytes


def test_data_ranks_keep_a_bound(pair: Team) -> None:
    free = pair.run(train_bound, Setting(activation_bytes=10**9), ParallelConfig(dp=2))
    bound = int(0.7 * free[0][1])
    found = pair.run(train_bound, Setting(activation_bytes=bound), ParallelConfig(dp=2))
    check_all([trained for trained, _ in found], train_alone(Setting(), 2))
    assert all(peak <= bound for _, peak in found)


def refuse(world: World, setting: Setting, config: ParallelConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        Run(Mesh(config, world), setting)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "config", "message"),
    [
        ("activation_bytes", ParallelConfig(pp=2), "no `activation_bytes` with `parallel.pp=2`"),
        ("activation_bytes", CP2, "no `activation_bytes` with `parallel.cp=2`"),
        ("offload", ParallelConfig(fsdp=2), "no `offload` with `parallel.fsdp=2`"),
        ("offload", ParallelConfig(tp=2), "no `offload` with `parallel.tp=2`"),
        ("offload", ParallelConfig(dp=2, ep=2), "no `offload` with `parallel.ep=2`"),
    ],
)
def test_what_a_mesh_does_not_do_is_refused(
    pair: Team, field: str, config: ParallelConfig, message: str
) -> None:
    setting = replace(Setting(), **{field: 10**9 if field == "activation_bytes" else True})
    assert all(message in told for told in pair.run(refuse, setting, config))


def recomputed(
    world: World, setting: Setting, config: ParallelConfig
) -> tuple[Trained, list[bool]]:
    run = Run(Mesh(config, world), setting)
    blocks = run.spreading.holder.layers
    flags = [bool(block.recompute) for block in blocks]
    return run.end(run.take_steps(range(2))), flags


def test_sharded_weights_recompute_the_named_layers_alone(pair: Team) -> None:
    found = pair.run(recomputed, Setting(recompute=(0, 2)), ParallelConfig(fsdp=2))
    check_all([trained for trained, _ in found], train_alone(Setting(), 2))
    assert all(flags == [True, False, True] for _, flags in found)
