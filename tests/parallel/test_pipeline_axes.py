"""A pipeline together with context, expert and tensor ranks, against one process."""

from pathlib import Path

import pytest
import torch
from spread_training import (
    Run,
    gradients_alone,
    train_in_turns,
    train_one_conversation,
    train_spread,
    whole_of,
)
from team import Team
from test_launch_axes import look_between, train_phases
from test_offload_training import run_both
from test_pipeline_training import check_all
from test_zero import EXACT, Trained, train_alone
from tiny_training import Mode, Setting, furthest, rows_of_step
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.errors import ConfigError, MismatchError
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import ALONE, Mesh, World
from fivefold.train.piped import PipedModel
from fivefold.train.step import own_microbatches

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

FOUR = {
    "cp": ParallelConfig(pp=2, cp=2),
    "ep": ParallelConfig(pp=2, dp=2, ep=2),
    "tp": ParallelConfig(pp=2, tp=2),
}
"""The pairs alone: 1F1B, the MTP layer where the work puts it."""
EIGHT = {
    "dp_tp_ep": ParallelConfig(pp=2, dp=2, tp=2, ep=2),
    "dp_tp_ep4": ParallelConfig(pp=2, dp=2, tp=2, ep=4, schedule="zb_h1", ranks_per_node=2),
    "dp_cp_ep": ParallelConfig(pp=2, dp=2, cp=2, ep=2, schedule="zb_v"),
    "cp_tp": ParallelConfig(pp=2, cp=2, tp=2),
    "cp_tp_ep": ParallelConfig(pp=2, cp=2, tp=2, ep=2, schedule="zb_v"),
    "four_stages_tp": ParallelConfig(pp=4, tp=2, pieces=(2, 2, 1, 1)),
    "four_stages_cp": ParallelConfig(pp=4, cp=2, pieces=(2, 2, 1, 1)),
}


def gradients_staged(world: World, setting: Setting, config: ParallelConfig) -> dict[str, Tensor]:
    """Return the gradients of one step of what this rank's stages hold, whole."""
    mesh = Mesh(config, world)
    run, rows = Run(mesh, setting), rows_of_step(0)
    piped = run.spreading.compute
    assert isinstance(piped, PipedModel)
    parts = own_microbatches(rows, setting.microbatch_rows, mesh.data)
    own = [part for part in parts if part is not None]
    piped.refresh()
    piped.run(own, rows, 0, run.tracker)
    piped.finish()
    return {
        name: whole_of(piped.as_global(name, row.grad))
        for name, row in piped.rows.items()
        if row.grad is not None
    }


@pytest.mark.parametrize(
    ("mode", "name", "fields"),
    [
        ("dense", "tp", {"mtp_stage": "before_last"}),
        ("sparse", "ep", {"schedule": "zb_v"}),
        ("warm_up", "cp", {"schedule": "zb_h1"}),
        *(
            pytest.param(mode, name, fields, marks=pytest.mark.slow)
            for mode in ("dense", "warm_up", "sparse")
            for name in FOUR
            for fields in (
                {},
                {"schedule": "zb_h1", "deferred_bytes": 2**16},
                {"schedule": "zb_v", "mtp_stage": "before_last"},
                {"schedule": "interleaved", "chunks": 3},
            )
        ),
    ],
)
def test_all_gradients_equal_one_process(
    four: Team, mode: Mode, name: str, fields: dict[str, object]
) -> None:
    setting = Setting(mode=mode)
    _, wanted = gradients_alone(setting)
    found = four.run(gradients_staged, setting, FOUR[name].model_copy(update=fields))
    seen: set[str] = set()
    for gradients in found:
        for key, gradient in gradients.items():
            assert furthest({key: gradient}, {key: wanted[key]})[0] <= EXACT, key
        seen |= gradients.keys()
    assert seen == wanted.keys()


@pytest.mark.slow
def test_a_training_that_moves_from_mesh_to_mesh_equals_one_process(
    four: Team, tmp_path: Path
) -> None:
    setting = Setting(mode="sparse")
    turns = [(FOUR["cp"], range(2)), (FOUR["tp"], range(2, 3)), (FOUR["ep"], range(3, 4))]
    ranks = four.run(train_in_turns, setting, turns, tmp_path, seconds=180)
    last = ParallelConfig(), range(4, 5)
    moves = [*zip(*ranks, strict=True), train_in_turns(ALONE, setting, [last], tmp_path)]
    for (_, steps), found in zip([*turns, last], moves, strict=True):
        whole = train_alone(setting, steps.stop)
        wanted = Trained(whole.results[steps.start :], whole.weights, whole.state, {})
        check_all([*found], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
@pytest.mark.parametrize("name", FOUR)
def test_five_steps_of_four_ranks_equal_one_process(four: Team, mode: Mode, name: str) -> None:
    setting = Setting(mode=mode)
    found = four.run(train_spread, setting, FOUR[name], 5, seconds=180)
    check_all(found, train_alone(setting, 5))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
@pytest.mark.parametrize("name", EIGHT)
def test_five_steps_of_eight_ranks_equal_one_process(eight: Team, mode: Mode, name: str) -> None:
    setting = Setting(mode=mode)
    found = eight.run(train_spread, setting, EIGHT[name], 5, seconds=300)
    check_all(found, train_alone(setting, 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp_tp_ep", "dp_tp_ep4", "dp_cp_ep"])
def test_a_step_with_one_row_for_eight_ranks_equals_one_process(eight: Team, name: str) -> None:
    setting = Setting()
    wanted = train_one_conversation(None, setting, ParallelConfig())
    check_all(eight.run(train_one_conversation, setting, EIGHT[name], seconds=300), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
@pytest.mark.parametrize("name", ["tp", "ep"])
def test_stages_whose_gradients_leave_early_equal_one_process(
    four: Team, mode: Mode, name: str
) -> None:
    setting = Setting(mode=mode)
    fields = {"zero": 2, "schedule": "interleaved", "chunks": 3, "bucket_bytes": 2**15}
    found = four.run(train_spread, setting, FOUR[name].model_copy(update=fields), 5, seconds=180)
    check_all(found, train_alone(setting, 5))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_context_ranks_share_rows_at_every_stage_of_zero(four: Team, zero: int) -> None:
    setting = Setting(mode="sparse")
    fields = {"zero": zero, "schedule": "interleaved", "chunks": 3, "mtp_stage": "before_last"}
    found = four.run(train_spread, setting, FOUR["cp"].model_copy(update=fields), 5, seconds=180)
    check_all(found, train_alone(setting, 5))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        pytest.param(mode, name, marks=() if name == "ep" else pytest.mark.slow)
        for mode in ("dense", "warm_up", "sparse")
        for name in FOUR
        # Where no row has weights, a data rank without rows is refused.
        if mode == "dense" or name != "ep"
    ],
)
def test_a_step_with_fewer_rows_than_ranks_equals_one_process(
    four: Team, mode: Mode, name: str
) -> None:
    # Along `ep` the data rank without rows runs a blank microbatch beside the other.
    setting = Setting(mode=mode)
    wanted = train_one_conversation(None, setting, ParallelConfig())
    check_all(four.run(train_one_conversation, setting, FOUR[name]), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_a_copy_in_bf16_computes_on_the_same_ranks(four: Team, name: str) -> None:
    setting = Setting(dtype="float32", compute_dtype="bfloat16")
    wanted = train_alone(setting, 1).results[0].measured["loss_nats"]
    for found in four.run(train_spread, setting, FOUR[name], 1):
        assert found.results[0].measured["loss_nats"] == pytest.approx(wanted, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_recomputed_blocks_exchange_again(four: Team, name: str) -> None:
    setting = Setting(mode="sparse", recompute=True)
    config = FOUR[name].model_copy(update={"schedule": "zb_v"})
    check_all(four.run(train_spread, setting, config, 1), train_alone(setting, 1))


@pytest.mark.slow
def test_what_stages_keep_of_their_tokens_waits_on_the_host(four: Team) -> None:
    config = FOUR["cp"].model_copy(update={"schedule": "interleaved", "chunks": 3})
    run_both(four, Setting(mode="sparse", offload=True, microbatch_rows=1), config, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_a_phase_changes_the_rotary_base_on_all_ranks(four: Team, name: str) -> None:
    setting = Setting()
    wanted = train_phases(None, setting, ParallelConfig())
    check_all(four.run(train_phases, setting, FOUR[name]), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_the_first_rank_sees_the_whole_model_in_between(four: Team, name: str) -> None:
    setting = Setting()
    after = train_alone(setting, 1).weights
    found = four.run(look_between, setting, FOUR[name])
    check_all([trained for trained, _ in found], train_alone(setting, 2))
    assert furthest(found[0][1], after)[0] <= EXACT
    assert not any(seen for _, seen in found[1:])


def train_spoilt(world: World, setting: Setting, config: ParallelConfig) -> Trained:
    """Take two steps; the last rank has a gradient that is not a number in the second."""
    run = Run(Mesh(config, world), setting)
    results = run.take_steps(range(1))
    if world.rank == world.size - 1:
        compute = run.spreading.compute
        assert isinstance(compute, PipedModel)
        (stage,) = compute.stages.values()
        head = stage.lm_head
        assert head is not None, "the last stage has the head"
        head.weight.register_hook(lambda gradient: gradient * torch.nan)
    return run.end(results + run.take_steps(range(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_a_nan_on_one_rank_skips_the_step_on_all(four: Team, name: str) -> None:
    setting = Setting()
    found = four.run(train_spoilt, setting, FOUR[name])
    for one in found:
        assert [result.is_skipped for result in one.results] == [False, True]
        one.results.pop()
    check_all(found, train_alone(setting, 1))


def step_that_is_refused(
    world: World, config: ParallelConfig, tokens: int, differs: bool, message: str
) -> None:
    """Try a step on rows of so many tokens, which perhaps differ between tensor ranks."""
    run = Run(Mesh(config, world), Setting())
    rows = rows_of_step(int(differs and world.rank % 2))
    end = tokens + 1
    cut = rows.ids[:, :end], rows.document[:, :end], rows.positions[:, :end], rows.source
    with pytest.raises((ConfigError, MismatchError), match=message):
        run.take_step(Rows(*cut), 0)


@pytest.mark.parametrize(
    ("tokens", "differs", "message"),
    [(15, False, "2 tensor ranks divide"), (16, True, "the rows of rank [02], 2 of 16 tokens")],
)
def test_rows_that_tensor_ranks_cannot_share_are_refused(
    four: Team, tokens: int, differs: bool, message: str
) -> None:
    four.run(step_that_is_refused, FOUR["tp"], tokens, differs, message)
