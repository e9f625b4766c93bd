"""Tensor, sequence and expert parallelism against one process: gradients, steps, bytes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from spread_training import Run, gradients_alone, gradients_spread, train_spread
from team import Team
from test_pipeline_training import check_all
from test_zero import EXACT, Trained, train_alone
from tiny_training import TINY, TOKENS, Mode, Setting, furthest, make_model, rows_of_step
from torch import Tensor

from fivefold.models.transformer import BlockOutput
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.part import cut_of
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.train.batch import label_counts
from fivefold.train.step import own_microbatches

pytestmark = [pytest.mark.dist, pytest.mark.slow]

MESHES = {
    "ep2": ParallelConfig(dp=2, ep=2),
    "tp2": ParallelConfig(tp=2),
    "tp2_ep2": ParallelConfig(tp=2, ep=2),
    "dp2_tp2": ParallelConfig(dp=2, tp=2),
    "dp4_ep2": ParallelConfig(dp=4, ep=2, bucket_bytes=2**14),
    "dp2_tp2_ep2": ParallelConfig(dp=2, tp=2, ep=2),
    "dp2_tp2_ep4": ParallelConfig(dp=2, tp=2, ep=4),
    "tp4": ParallelConfig(tp=4),
}


def train_spoilt(world: World, setting: Setting, config: ParallelConfig) -> Trained:
    """Take two steps; the last rank has a gradient that is not a number in the second."""
    run = Run(Mesh(config, world), setting)
    results = run.take_steps(range(1))
    if world.rank == world.size - 1:
        run.spreading.compute.model.layers[0].register_forward_hook(_spoil)
    return run.end(results + run.take_steps(range(1, 2)))


def _spoil(_: object, __: object, output: BlockOutput) -> BlockOutput:
    return output._replace(x_BTD=output.x_BTD * math.nan)


def team_of(mesh: str, pair: Team, four: Team) -> Team:
    return pair if MESHES[mesh].size == 2 else four


CASES = [
    *(("dense", mesh) for mesh in MESHES),
    *(("warm_up", mesh) for mesh in ("tp2", "dp2_tp2_ep2")),
    *(("sparse", mesh) for mesh in ("tp2", "dp2_tp2_ep4", "tp4")),
]


@pytest.mark.parametrize(("mode", "mesh"), CASES)
def test_loss_and_all_gradients_equal_one_process(
    pair: Team, four: Team, mode: Mode, mesh: str
) -> None:
    setting = Setting(mode=mode)
    loss, gradients = gradients_alone(setting)
    for found_loss, found in team_of(mesh, pair, four).run(gradients_spread, setting, MESHES[mesh]):
        assert found_loss == pytest.approx(loss, rel=EXACT)
        assert furthest(found, gradients)[0] <= EXACT, furthest(found, gradients)


@pytest.mark.parametrize(
    ("mode", "mesh"),
    [
        *(("sparse", mesh) for mesh in ("ep2", "tp2", "tp2_ep2", "dp2_tp2", "dp2_tp2_ep2")),
        ("dense", "dp4_ep2"),
        ("dense", "dp2_tp2_ep4"),
    ],
)
def test_five_steps_equal_one_process(pair: Team, four: Team, mode: Mode, mesh: str) -> None:
    setting = Setting(mode=mode)
    wanted = train_alone(setting, 5)
    check_all(team_of(mesh, pair, four).run(train_spread, setting, MESHES[mesh], 5), wanted)


class Early(NamedTuple):
    """What became of gradients that leave as the backward makes them."""

    trained: Trained
    peak_bytes: int
    whole_bytes: int
    """Of all gradients that this rank makes and other ranks update in part."""
    sent_bytes: float
    """Of the gradients of a step."""


def train_early(world: World, setting: Setting, config: ParallelConfig) -> Early:
    mesh = Mesh(config, world)
    run = Run(mesh, setting)
    trained = run.take_steps(range(4))
    spreading = run.spreading
    rows = spreading.sharding
    assert isinstance(rows, SplitRows)
    peak = 0 if rows.stream is None else rows.stream.peak_bytes
    apart = [part for name, part in rows.parts.items() if rows.rows[name] is not part]
    mesh.ledger.reset()
    for part in own_microbatches(rows_of_step(0), setting.microbatch_rows, mesh.data):
        assert part is not None, "rows divide among ranks"
        setting.objective(spreading.compute.model, part, rows_of_step(0), 0).total.backward()
        spreading.compute.collect()
        rows.collect()
    rows.finish()
    sent = mesh.ledger.sent_bytes("all_to_all", "dp+fsdp+cp+tp")
    return Early(run.end(trained), peak, sum(part.nbytes for part in apart), sent)


@pytest.mark.parametrize(
    ("mode", "mesh"),
    [("dense", "dp2_tp2_ep4"), ("sparse", "dp2_tp2"), ("warm_up", "dp2_tp2"), ("sparse", "tp2")],
)
def test_gradients_that_leave_early_are_never_whole(
    pair: Team, four: Team, mode: Mode, mesh: str
) -> None:
    setting, team = Setting(mode=mode), team_of(mesh, pair, four)
    config = MESHES[mesh].model_copy(update={"bucket_bytes": 2**15})
    late = team.run(train_early, setting, config, seconds=180)
    found = team.run(train_early, setting, config.model_copy(update={"zero": 2}), seconds=180)
    wanted = train_alone(setting, 4)
    microbatches = len(rows_of_step(0).ids) // config.data // setting.microbatch_rows
    check_all([early.trained for early in found], wanted)
    for early, one in zip(found, late, strict=True):
        assert one.peak_bytes == 0
        # One fills while two travel; a parameter above the limit is a bucket alone.
        largest = max(8 * math.prod(shape) for shape in shapes_of(setting).values())
        assert 0 < early.peak_bytes <= 4 * max(2**15, largest)
        if mode != "warm_up":
            assert early.peak_bytes < early.whole_bytes / 2
        assert early.sent_bytes == microbatches * one.sent_bytes > 0


def test_recomputed_blocks_exchange_again(four: Team) -> None:
    setting = Setting(mode="sparse", recompute=True)
    wanted = train_alone(setting, 1)
    check_all(four.run(train_spread, setting, MESHES["dp2_tp2_ep4"], 1), wanted)


def test_a_copy_in_bf16_computes_on_the_same_ranks(pair: Team) -> None:
    setting = Setting(dtype="float32", compute_dtype="bfloat16")
    wanted = train_alone(setting, 1).results[0].measured["loss_nats"]
    for found in pair.run(train_spread, setting, MESHES["tp2_ep2"], 1):
        assert found.results[0].measured["loss_nats"] == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize(("first", "second"), [("dp2_tp2_ep4", "tp4"), ("dp2_tp2", "dp4_ep2")])
def test_a_state_goes_on_on_another_mesh(
    four: Team, tmp_path: Path, first: str, second: str
) -> None:
    setting = Setting()
    wanted = train_alone(setting, 4)
    four.run(train_saved, setting, MESHES[first], (0, 2), tmp_path)
    found = four.run(train_saved, setting, MESHES[second], (2, 4), tmp_path)
    assert furthest(found[0], wanted.weights)[0] <= EXACT


def train_saved(
    world: World, setting: Setting, config: ParallelConfig, steps: tuple[int, int], directory: Path
) -> dict[str, Tensor]:
    """Take some steps from the saved state on, save, and return the weights, the first rank all."""
    run = Run(Mesh(config, world), setting)
    if steps[0]:
        run.load(directory)
    results = run.take_steps(range(*steps))
    run.save(directory, steps[1])
    return run.end(results).weights


def exchanged(world: World, setting: Setting, config: ParallelConfig) -> dict[str, float]:
    """Return the bytes that tensor ranks exchange in one step, and those of its gradients."""
    mesh = Mesh(config, world)
    spreading = Run(mesh, setting).spreading
    assert spreading.sharding is not None, "there are several ranks"
    ledger = mesh.ledger
    ledger.reset()
    part = rows_of_step(0).part(slice(0, 2))
    setting.objective(spreading.compute.model, part, rows_of_step(0), 0).total.backward()
    operations = ("all_gather", "reduce_scatter", "all_reduce")
    sent = {name: ledger.sent_bytes(name, "tp") for name in operations}
    spreading.sharding.finish()
    return sent | {"gradients": ledger.sent_bytes("all_to_all", "dp+fsdp+cp+tp")}


def test_bytes_are_those_of_the_formulas(pair: Team) -> None:
    setting = Setting(dtype="float32")
    rows, ranks = 2, 2
    tokens = rows * TOKENS
    share = (ranks - 1) / ranks
    stream = tokens * TINY.hidden_size * 4 * share
    depths, layers = TINY.fivefold.mtp_depths, TINY.num_hidden_layers + TINY.fivefold.mtp_depths
    moe_layers = layers - TINY.first_k_dense_replace
    # Two pairs of matrices a layer, in both directions; lookups and states of each depth.
    streams = layers * 2 * 2 + 2 * (depths + 1)
    routing = tokens * (TINY.n_routed_experts * 4 + TINY.num_experts_per_tok * 8) * share
    check = ranks * 3 * 8 * share
    labels = sum(label_counts(rows_of_step(0).part(slice(0, rows)), depths))
    for rank, found in enumerate(pair.run(exchanged, setting, MESHES["tp2"])):
        assert found["reduce_scatter"] == streams * stream
        assert found["all_gather"] == streams * stream + moe_layers * routing + check
        # The largest logit, then the sum and the label's logit: three numbers a label.
        assert found["all_reduce"] == 2 * 3 * 4 * labels * share
        assert found["gradients"] == gradient_bytes(setting, MESHES["tp2"], rank)


@pytest.mark.parametrize("mesh", ["ep2", "tp2_ep2"])
def test_gradients_of_experts_stay_with_their_ranks(pair: Team, mesh: str) -> None:
    # Two ranks hold half of the experts each and update the same half: nothing travels.
    setting = Setting(dtype="float32")
    experts = [name for name in shapes_of(setting) if ".experts." in name]
    for rank, found in enumerate(pair.run(exchanged, setting, MESHES[mesh])):
        assert found["gradients"] == gradient_bytes(setting, MESHES[mesh], rank, without=experts)


def shapes_of(setting: Setting) -> dict[str, tuple[int, ...]]:
    named = make_model(setting).named_parameters()
    return {name: tuple(value.shape) for name, value in named if value.requires_grad}


def gradient_bytes(
    setting: Setting, config: ParallelConfig, rank: int, without: Sequence[str] = ()
) -> int:
    """Count, element by element, what a rank holds of gradients and another rank updates."""
    count = 0
    for name, shape in shapes_of(setting).items():
        if name in without:
            continue
        owner = torch.arange(shape[0]) // -(-shape[0] // config.size)
        owners = owner.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        cut = cut_of(name, shape, config, rank)
        held = owners if cut is None else cut.of(owners)
        count += int((held != rank).sum())
    return 4 * count


def test_a_nan_on_one_rank_skips_the_step_on_all(pair: Team) -> None:
    setting = Setting()
    before = train_alone(setting, 1)
    found = pair.run(train_spoilt, setting, MESHES["tp2_ep2"])
    for one in found:
        assert [result.is_skipped for result in one.results] == [False, True]
    assert furthest(found[0].weights, before.weights)[0] <= EXACT
