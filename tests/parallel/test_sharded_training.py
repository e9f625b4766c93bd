"""Sharded weights beside every other axis against one process: gradients, steps, states, bytes."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from spread_training import (
    Run,
    gradients_alone,
    gradients_spread,
    train_in_turns,
    train_one_conversation,
    train_spread,
)
from team import Team
from test_launch_axes import look_between, train_phases
from test_pipeline_axes import gradients_staged
from test_pipeline_training import check_all
from test_zero import EXACT, Trained, train_alone
from tiny_training import TOKENS, Mode, Setting, furthest, make_model, rows_of_step
from torch.distributed.tensor import DTensor

from fivefold.parallel.config import ParallelConfig, rank_table
from fivefold.parallel.mesh import ALONE, Mesh, World
from fivefold.parallel.offload import blocks_by_layer
from fivefold.parallel.part import cut_of
from fivefold.parallel.tensor import local_of
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.stage import OneProcess

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

TWO = {
    # Each rank has its own experts, which nobody shares.
    "ep": ParallelConfig(fsdp=2, ep=2),
}
FOUR = {
    "dp": ParallelConfig(dp=2, fsdp=2, bucket_bytes=2**15),
    "cp": ParallelConfig(fsdp=2, cp=2),
    "tp": ParallelConfig(fsdp=2, tp=2),
    # All ranks along `fsdp` have the same experts, two of four have, or none.
    "tp_ep": ParallelConfig(fsdp=2, tp=2, ep=2),
    "some_ep": ParallelConfig(fsdp=4, ep=2),
    "tp_ep4": ParallelConfig(fsdp=2, tp=2, ep=4),
    "dp_ep": ParallelConfig(dp=2, fsdp=2, ep=2),
}
EIGHT = {
    "dp_tp": ParallelConfig(dp=2, fsdp=2, tp=2),
    "cp_tp": ParallelConfig(fsdp=2, cp=2, tp=2, cp_form="heads"),
    "dp_tp_ep4": ParallelConfig(dp=2, fsdp=2, tp=2, ep=4, ranks_per_node=2),
    "cp_ep4": ParallelConfig(fsdp=4, cp=2, ep=4),
}
PIPED = {
    "1f1b": ParallelConfig(pp=2, fsdp=2),
    # The embedding is read by both stages of the first rank.
    "zb_v": ParallelConfig(pp=2, fsdp=2, schedule="zb_v", mtp_stage="last"),
    "zb_h1": ParallelConfig(pp=2, fsdp=2, schedule="zb_h1", mtp_stage="before_last"),
    "interleaved": ParallelConfig(pp=2, fsdp=2, schedule="interleaved", chunks=3),
}
PIPED_EIGHT = {
    "dp": ParallelConfig(pp=2, dp=2, fsdp=2),
    "tp": ParallelConfig(pp=2, fsdp=2, tp=2),
    "cp": ParallelConfig(pp=2, fsdp=2, cp=2, schedule="zb_v"),
    "ep": ParallelConfig(pp=2, dp=2, fsdp=2, ep=4, schedule="interleaved", chunks=3),
    "tp_ep": ParallelConfig(pp=2, fsdp=2, tp=2, ep=2, schedule="zb_h1"),
}
FAST = {("dense", "some_ep"), ("sparse", "tp_ep"), ("warm_up", "cp")}
FAST_PIPED = {("sparse", "zb_v"), ("warm_up", "1f1b")}


def cases(meshes: dict[str, ParallelConfig], fast: set[tuple[str, str]]) -> list[object]:
    return [
        pytest.param(mode, name, marks=() if (mode, name) in fast else pytest.mark.slow)
        for mode in ("dense", "warm_up", "sparse")
        for name in meshes
    ]


def team_of(config: ParallelConfig, pair: Team, four: Team) -> Team:
    return pair if config.size == 2 else four


@pytest.mark.parametrize(("mode", "name"), cases(TWO | FOUR, FAST))
def test_loss_and_all_gradients_equal_one_process(
    pair: Team, four: Team, mode: Mode, name: str
) -> None:
    setting, config = Setting(mode=mode), (TWO | FOUR)[name]
    loss, gradients = gradients_alone(setting)
    for found_loss, found in team_of(config, pair, four).run(gradients_spread, setting, config):
        assert found_loss == pytest.approx(loss, rel=EXACT)
        assert furthest(found, gradients)[0] <= EXACT, furthest(found, gradients)


@pytest.mark.parametrize(("mode", "name"), cases(TWO | FOUR, {("sparse", "ep"), ("dense", "tp")}))
def test_five_steps_equal_one_process(pair: Team, four: Team, mode: Mode, name: str) -> None:
    setting, config = Setting(mode=mode), (TWO | FOUR)[name]
    wanted = train_alone(setting, 5)
    check_all(
        team_of(config, pair, four).run(train_spread, setting, config, 5, seconds=180), wanted
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
@pytest.mark.parametrize("name", EIGHT)
def test_five_steps_of_eight_ranks_equal_one_process(eight: Team, mode: Mode, name: str) -> None:
    setting = Setting(mode=mode)
    wanted = train_alone(setting, 5)
    check_all(eight.run(train_spread, setting, EIGHT[name], 5, seconds=300), wanted)


@pytest.mark.parametrize(("mode", "name"), cases(PIPED, FAST_PIPED))
def test_gradients_of_a_pipeline_equal_one_process(four: Team, mode: Mode, name: str) -> None:
    setting = Setting(mode=mode)
    _, wanted = gradients_alone(setting)
    seen: set[str] = set()
    for gradients in four.run(gradients_staged, setting, PIPED[name]):
        for key, gradient in gradients.items():
            assert furthest({key: gradient}, {key: wanted[key]})[0] <= EXACT, key
        seen |= gradients.keys()
    assert seen == wanted.keys()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
@pytest.mark.parametrize("name", PIPED)
def test_five_steps_of_a_pipeline_equal_one_process(four: Team, mode: Mode, name: str) -> None:
    setting = Setting(mode=mode)
    found = four.run(train_spread, setting, PIPED[name], 5, seconds=180)
    check_all(found, train_alone(setting, 5))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
@pytest.mark.parametrize("name", PIPED_EIGHT)
def test_five_steps_of_a_pipeline_of_eight_ranks_equal_one_process(
    eight: Team, mode: Mode, name: str
) -> None:
    setting = Setting(mode=mode)
    found = eight.run(train_spread, setting, PIPED_EIGHT[name], 5, seconds=300)
    check_all(found, train_alone(setting, 5))


def test_a_training_that_moves_from_mesh_to_mesh_equals_one_process(
    four: Team, tmp_path: Path
) -> None:
    setting = Setting(mode="sparse")
    turns = [
        (FOUR["tp_ep"], range(2)),
        (PIPED["zb_v"], range(2, 3)),
        (FOUR["some_ep"], range(3, 4)),
    ]
    ranks = four.run(train_in_turns, setting, turns, tmp_path, seconds=180)
    last = ParallelConfig(), range(4, 5)
    moves = [*zip(*ranks, strict=True), train_in_turns(ALONE, setting, [last], tmp_path)]
    for (_, steps), found in zip([*turns, last], moves, strict=True):
        whole = train_alone(setting, steps.stop)
        wanted = Trained(whole.results[steps.start :], whole.weights, whole.state, {})
        check_all([*found], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cp", "tp", "tp_ep4", "pipeline"])
def test_a_step_with_one_row_equals_one_process(four: Team, name: str) -> None:
    setting, config = Setting(), FOUR.get(name, PIPED["zb_v"])
    wanted = train_one_conversation(None, setting, ParallelConfig())
    check_all(four.run(train_one_conversation, setting, config), wanted)


def train_seven_rows(world: World | None, setting: Setting, config: ParallelConfig) -> Trained:
    """Take a step in which one data rank has a microbatch more than the other."""
    run = Run(OneProcess() if world is None else Mesh(config, world), setting)
    return run.end([run.take_step(rows_of_step(0).part(slice(0, 7)), 0)])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["warm_up", "sparse"])
def test_data_ranks_with_fewer_microbatches_run_blank_ones(four: Team, mode: Mode) -> None:
    setting = Setting(mode=mode, microbatch_rows=1)
    wanted = train_seven_rows(None, setting, ParallelConfig())
    check_all(four.run(train_seven_rows, setting, PIPED["zb_v"]), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cp", "tp_ep", "pipeline"])
def test_a_phase_changes_the_rotary_base_on_all_ranks(four: Team, name: str) -> None:
    setting, config = Setting(), FOUR.get(name, PIPED["zb_v"])
    wanted = train_phases(None, setting, ParallelConfig())
    check_all(four.run(train_phases, setting, config), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp", "tp_ep", "some_ep", "pipeline"])
def test_the_first_rank_sees_the_whole_model_in_between(four: Team, name: str) -> None:
    setting, config = Setting(), FOUR.get(name, PIPED["zb_v"])
    after = train_alone(setting, 1).weights
    found = four.run(look_between, setting, config)
    check_all([trained for trained, _ in found], train_alone(setting, 2))
    assert furthest(found[0][1], after)[0] <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cp", "tp_ep", "some_ep", "pipeline"])
def test_recomputed_blocks_are_gathered_again(four: Team, name: str) -> None:
    setting, config = Setting(mode="sparse", recompute=True), FOUR.get(name, PIPED["zb_v"])
    check_all(four.run(train_spread, setting, config, 1), train_alone(setting, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1f1b", "zb_v"])
def test_a_pipeline_in_bf16_computes_as_one_process(four: Team, name: str) -> None:
    setting = Setting(dtype="float32", compute_dtype="bfloat16", clip_norm=1e9)
    check_all(four.run(train_spread, setting, PIPED[name], 1), train_alone(setting, 1), 1e-2)


class Held(NamedTuple):
    """What a rank holds of the weights."""

    parts: dict[str, int]
    """Elements of each parameter."""
    rows_apart: set[str]
    """Parameters whose rows have memory of their own."""
    gathered: list[int]
    """Blocks that were whole when each block's attention ran."""


def hold(world: World, setting: Setting, config: ParallelConfig) -> Held:
    spreading = Run(Mesh(config, world), setting).spreading
    model, rows = spreading.holder, spreading.sharding
    assert isinstance(rows, SplitRows)
    parts = {name: local_of(value).numel() for name, value in model.named_parameters()}
    gathered: list[int] = []
    attentions = [block.self_attn for block in blocks_by_layer(model).values()]

    def count(*_: object) -> None:
        weights = [attention.o_proj.weight for attention in attentions]
        gathered.append(sum(not isinstance(weight, DTensor) for weight in weights))

    for attention in attentions:
        attention.register_forward_pre_hook(count)
    with torch.no_grad():
        model(torch.arange(2 * TOKENS).view(2, TOKENS))
    return Held(
        parts,
        {name for name, row in rows.rows.items() if row is not rows.parts[name]},
        gathered,
    )


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(fsdp=4),
        pytest.param(FOUR["tp_ep"], marks=pytest.mark.slow),
        pytest.param(FOUR["some_ep"], marks=pytest.mark.slow),
        pytest.param(FOUR["dp"], marks=pytest.mark.slow),
    ],
    ids=["fsdp4", "tp_ep", "some_ep", "dp"],
)
def test_a_rank_holds_its_part_and_gathers_a_block_at_a_time(
    four: Team, config: ParallelConfig
) -> None:
    setting = Setting(mode="sparse")
    for rank, held in enumerate(four.run(hold, setting, config)):
        for name, value in make_model(setting).named_parameters():
            cut = cut_of(name, tuple(value.shape), config, rank)
            part = value if cut is None else cut.of(value)
            sharing = config.expert_shards if ".experts." in name else config.fsdp
            axis = "efsdp" if ".experts." in name else "fsdp"
            ranks = next(group for group in rank_table(config, axis) if rank in group)
            assert len(ranks) == sharing
            own = part.chunk(sharing)[ranks.index(rank) :][:1]
            assert held.parts[name] == sum(chunk.numel() for chunk in own), name
        assert held.gathered == [1] * 3
        if config.size == config.fsdp and config.ep == 1:
            assert not held.rows_apart
