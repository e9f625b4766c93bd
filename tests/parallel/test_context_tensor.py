"""Ranks that share tokens and heads, `cp` beside `tp`, against one process: gradients and steps."""

from pathlib import Path

import pytest
import torch
from spread_training import Run, gradients_alone, gradients_spread, train_spread
from team import Team
from test_batch import make_rows
from test_pipeline_training import check_all
from test_zero import EXACT, train_alone
from tiny_training import Mode, Setting, furthest, make_model, rows_of_step
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.errors import ConfigError
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.context.assignment import Run as TokenRun
from fivefold.parallel.context.selection import own_slices, runs_within
from fivefold.parallel.mesh import ALONE, Mesh, World
from fivefold.train.batch import make_batch

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

LATENTS = ParallelConfig(cp=2, tp=2)
HEADS = ParallelConfig(cp=2, tp=2, cp_form="heads")
MOVED = ParallelConfig(dp=2, tp=2, ep=2)


def test_runs_of_a_part_are_those_of_its_tokens() -> None:
    runs = [TokenRun(0, 4, 9), TokenRun(2, 0, 1), TokenRun(2, 3, 7)]
    places = [(run.row, place) for run in runs for place in range(run.begin, run.end)]
    for begin in range(len(places)):
        for end in range(begin, len(places) + 1):
            found = runs_within(runs, slice(begin, end))
            pairs = [(run.row, place) for run in found for place in range(run.begin, run.end)]
            assert pairs == places[begin:end]
    assert [own for _, own in own_slices(runs)] == [slice(0, 5), slice(5, 6), slice(6, 10)]


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        ("sparse", ParallelConfig(cp=2, tp=2, ep=4, cp_form="heads")),
        pytest.param("warm_up", ParallelConfig(cp=2, tp=2, ep=2), marks=pytest.mark.slow),
        pytest.param("dense", LATENTS, marks=pytest.mark.slow),
        pytest.param("dense", HEADS, marks=pytest.mark.slow),
        pytest.param("warm_up", HEADS, marks=pytest.mark.slow),
        pytest.param("sparse", LATENTS, marks=pytest.mark.slow),
        pytest.param(
            "sparse", ParallelConfig(cp=2, tp=2, cp_order="zigzag"), marks=pytest.mark.slow
        ),
        pytest.param(
            "sparse", ParallelConfig(cp=2, tp=2, cp_order="contiguous"), marks=pytest.mark.slow
        ),
    ],
)
def test_loss_and_all_gradients_equal_one_process(
    four: Team, mode: Mode, config: ParallelConfig
) -> None:
    setting = Setting(mode=mode)
    loss, gradients = gradients_alone(setting)
    for found_loss, found in four.run(gradients_spread, setting, config, seconds=180):
        assert found_loss == pytest.approx(loss, rel=EXACT)
        assert furthest(found, gradients)[0] <= EXACT, furthest(found, gradients)


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        pytest.param("sparse", ParallelConfig(cp=2, tp=2, ep=2), marks=pytest.mark.slow),
        pytest.param("warm_up", LATENTS, marks=pytest.mark.slow),
        pytest.param("dense", ParallelConfig(cp=2, tp=2, ep=4), marks=pytest.mark.slow),
        pytest.param("sparse", HEADS, marks=pytest.mark.slow),
    ],
)
def test_five_steps_equal_one_process(four: Team, mode: Mode, config: ParallelConfig) -> None:
    setting = Setting(mode=mode)
    wanted = train_alone(setting, 5)
    check_all(four.run(train_spread, setting, config, 5, seconds=180), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(dp=2, cp=2, tp=2, ep=8),
        ParallelConfig(cp=4, tp=2, ep=2),
    ],
)
def test_five_steps_of_eight_ranks_equal_one_process(eight: Team, config: ParallelConfig) -> None:
    wanted = train_alone(Setting(mode="sparse"), 5)
    setting = Setting(mode="sparse", recompute=True)
    check_all(eight.run(train_spread, setting, config, 5, seconds=300), wanted)


def train_and_move(world: World, setting: Setting, directory: Path) -> dict[str, Tensor]:
    """Take steps on three meshes, each from the state of the one before."""
    weights = {}
    for number, config in enumerate([LATENTS, MOVED, HEADS]):
        run = Run(Mesh(config, world), setting)
        if number:
            assert run.load(directory) == number
        results = run.take_steps(range(number, number + 1))
        run.save(directory, number + 1)
        weights = run.end(results).weights
    return weights


@pytest.mark.slow
def test_a_state_moves_to_another_mesh_and_back(four: Team, tmp_path: Path) -> None:
    setting = Setting(mode="sparse")
    wanted = train_alone(setting, 3).weights
    assert furthest(four.run(train_and_move, setting, tmp_path, seconds=180)[0], wanted)[0] <= EXACT


def probe(world: World, config: ParallelConfig | None, rows: Rows) -> list[Tensor]:
    """Return totals, counts and masses of attention of every layer."""
    mesh = Mesh() if config is None else Mesh(config, world)
    setting = Setting()
    batch = make_batch(rows, 0, "cpu", keeps_padding=True)
    ids, places = batch.ids_BT, (batch.positions_BT, batch.documents_BT)
    if config is None:
        model = make_model(setting)
        model.set_index_topk(4)
        around = model.surroundings(*places, indexer="probe")
    else:
        spreading = Run(mesh, setting).spreading
        model, context = spreading.compute.model, spreading.context
        assert context is not None
        model.set_index_topk(4)
        around = context.surroundings(model, *places, indexer="probe")
        ids = around.shard.take(ids)
    with torch.no_grad():
        losses = model(ids, around=around).index_losses
    told = []
    for loss in losses:
        assert loss.mass is not None
        parts = [loss.total, loss.queries.double(), *loss.mass]
        told.append(all_reduce(torch.stack(parts), mesh.group("cp")))
    return told


@pytest.mark.slow
def test_probe_counts_every_query_once(four: Team) -> None:
    rows = rows_of_step(0)
    wanted = probe(ALONE, None, rows)
    for found in four.run(probe, LATENTS, rows):
        for mine, theirs in zip(found, wanted, strict=True):
            assert torch.allclose(mine, theirs, rtol=EXACT, atol=0)


def refused(world: World, rows: Rows) -> str:
    try:
        probe(world, LATENTS, rows)
    except ConfigError as error:
        return str(error)
    return ""


def test_rows_that_tensor_ranks_do_not_divide_are_refused(four: Team) -> None:
    for told in four.run(refused, make_rows([[1, 20], [22]], 22)):
        assert "rows of tokens that 2 tensor ranks divide; found 21 tokens" in told
