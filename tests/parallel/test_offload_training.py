"""Activations that several ranks move, compute again or bound: the bits of kept ones."""

import logging
import math
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

from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.offload_ledger import OffloadLedger
from fivefold.plan.activation_choice import KEEP, RECOMPUTE, ActivationChoice
from fivefold.plan.hardware import HARDWARE
from fivefold.train import activations
from fivefold.train.compute import ComputeModel
from fivefold.train.piped import PipedModel

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

SECONDS = 180.0
"""Longest time of a case: several trainings."""

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


def check_same_bits(mine: Trained, theirs: Trained) -> None:
    pairs = zip(mine.results, theirs.results, strict=True)
    assert all(a.measured == b.measured for a, b in pairs)
    for name, value in theirs.weights.items():
        assert torch.equal(mine.weights[name], value), name


def run_both(
    team: Team, setting: Setting, config: ParallelConfig, ends_with_one_row: bool
) -> tuple[list[Moving], list[Moving]]:
    """Train with and without moving; all bits are the same."""
    moved, kept = (
        team.run(train_moving, setting, config, least_bytes, ends_with_one_row, seconds=SECONDS)
        for least_bytes in (64, 10**9)
    )
    for mine, theirs in zip(moved, kept, strict=True):
        check_same_bits(mine.trained, theirs.trained)
        assert theirs.ledger.out_bytes == 0
        assert mine.ledger.late == 0
        assert mine.ledger.out_bytes > 0
    return moved, kept


@pytest.mark.parametrize("mode", [pytest.param("warm_up", marks=pytest.mark.slow), "sparse"])
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


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(tp=2),
        pytest.param(ParallelConfig(dp=2, ep=2), marks=pytest.mark.slow),
        pytest.param(ParallelConfig(fsdp=2), marks=pytest.mark.slow),
    ],
    ids=["tp", "ep", "fsdp"],
)
def test_ranks_that_share_layers_move_too(pair: Team, config: ParallelConfig) -> None:
    run_both(pair, Setting(mode="sparse", offload=True), config, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(pp=2, tp=2, schedule="interleaved", chunks=3),
        ParallelConfig(pp=2, dp=2, ep=2, schedule="interleaved", chunks=3),
        ParallelConfig(fsdp=2, tp=2),
        ParallelConfig(pp=2, fsdp=2, schedule="interleaved", chunks=3),
    ],
    ids=["pp_tp", "pp_ep", "fsdp_tp", "pp_fsdp"],
)
def test_four_ranks_that_share_layers_move_too(four: Team, config: ParallelConfig) -> None:
    run_both(four, Setting(mode="sparse", offload=True, microbatch_rows=1), config, False)


class Bounded(NamedTuple):
    """A training under a bound, what its layers held and what was chosen for them."""

    trained: Trained
    ledger: OffloadLedger
    choices: list[ActivationChoice]
    warnings: list[str]


def train_bound(
    world: World,
    setting: Setting,
    config: ParallelConfig,
    bandwidth: float | None = None,
    expert_margin: float = 1.5,
) -> Bounded:
    """Take two steps and one of half as many rows; the link has a `bandwidth`, or is not known."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())
    activations.logger.addHandler(handler)
    hardware = None
    if bandwidth is not None:
        hardware = HARDWARE["h100"].model_copy(update={"host_bandwidth": bandwidth})
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(activations, "find_hardware_of", lambda _: hardware)
            patch.setattr(activations, "_EXPERT_MARGIN", expert_margin)
            run = open_moving(world, setting, config, 64)
            results = run.take_steps(range(2))
            results.append(run.take_step(rows_of_step(2).part(slice(0, 4)), 2000))
    finally:
        activations.logger.removeHandler(handler)
    treatment = compute_of(run).treatment
    assert treatment.offloader is not None
    assert treatment.bound is not None
    treatment.offloader.ledger.check_idle()
    choices = [*treatment.bound.choices.values()]
    return Bounded(run.end(results), treatment.offloader.ledger, choices, told)


def check_bound(
    team: Team,
    setting: Setting,
    config: ParallelConfig,
    share: float = 0.8,
    bandwidth: float | None = None,
) -> list[Bounded]:
    """Train without need and with a bound of a share of what that holds on paper."""
    roomy = replace(setting, activation_bytes=10**9)
    free = team.run(train_bound, roomy, config, seconds=SECONDS)
    for one in free:
        assert all({*choice.treatments} == {KEEP} for choice in one.choices)
        # A rank may have no layers.
        on_paper = max((choice.held_bytes for choice in one.choices), default=0)
        assert one.ledger.peak_bytes <= on_paper
    bound = int(share * max(choice.held_bytes for one in free for choice in one.choices))
    bounded = replace(setting, activation_bytes=bound)
    found = team.run(train_bound, bounded, config, bandwidth, seconds=SECONDS)
    for mine, theirs in zip(found, free, strict=True):
        check_same_bits(mine.trained, theirs.trained)
        assert mine.ledger.peak_bytes <= bound
        assert all(choice.held_bytes <= bound for choice in mine.choices)
        assert not mine.warnings
    treated = {each for one in found for choice in one.choices for each in choice.treatments}
    assert treated - {KEEP}
    return found


def test_data_ranks_keep_a_bound(pair: Team) -> None:
    check_bound(pair, Setting(), ParallelConfig(dp=2))


PIPELINES = {
    "1f1b": ParallelConfig(pp=2),
    "zb_h1": ParallelConfig(pp=2, schedule="zb_h1"),
    "zb_v": ParallelConfig(pp=2, schedule="zb_v"),
    "interleaved": ParallelConfig(pp=2, schedule="interleaved", chunks=3),
}


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("dense", "1f1b"),
        *(
            pytest.param(mode, name, marks=pytest.mark.slow)
            for mode, name in [
                ("dense", "zb_h1"),
                ("sparse", "zb_v"),
                ("dense", "interleaved"),
                ("warm_up", "1f1b"),
            ]
        ),
    ],
)
def test_stages_keep_a_bound(pair: Team, mode: Mode, name: str) -> None:
    found = check_bound(pair, Setting(mode=mode, microbatch_rows=1), PIPELINES[name])
    # Fewer microbatches in the last step are chosen for anew, and need less.
    first, last = found[0].choices[0], found[0].choices[-1]
    assert len(found[0].choices) == 2
    assert last.seconds <= first.seconds
    assert not any(treatment.move for treatment in first.treatments)


@pytest.mark.parametrize(
    "name",
    ["zb_v", *(pytest.param(n, marks=pytest.mark.slow) for n in ("1f1b", "zb_h1", "interleaved"))],
)
def test_stages_move_what_a_fast_link_takes(pair: Team, name: str) -> None:
    setting = Setting(microbatch_rows=1)
    found = check_bound(pair, setting, PIPELINES[name], 0.85, bandwidth=1e15)
    assert sum(one.ledger.out_bytes for one in found) > 0
    for one in found:
        assert one.ledger.late == 0
        assert one.ledger.out_bytes == one.ledger.in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("bandwidth", [None, 1e15])
@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(tp=2),
        CP2,
        ParallelConfig(cp=2, cp_form="heads"),
        ParallelConfig(dp=2, ep=2),
        ParallelConfig(fsdp=2),
    ],
    ids=["tp", "cp", "cp_heads", "ep", "fsdp"],
)
def test_ranks_that_share_layers_keep_a_bound(
    pair: Team, config: ParallelConfig, bandwidth: float | None
) -> None:
    for mode in ("dense", "sparse"):
        check_bound(pair, Setting(mode=mode), config, bandwidth=bandwidth)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(pp=4, pieces=(2, 2, 1, 1)),
        ParallelConfig(pp=2, tp=2, schedule="zb_v"),
        ParallelConfig(pp=2, cp=2),
        ParallelConfig(pp=2, dp=2, ep=2, schedule="zb_h1"),
        ParallelConfig(pp=2, fsdp=2),
    ],
    ids=["four_stages", "tp", "cp", "ep", "fsdp"],
)
def test_stages_of_ranks_that_share_layers_keep_a_bound(four: Team, config: ParallelConfig) -> None:
    for bandwidth in (None, 1e15):
        check_bound(four, Setting(microbatch_rows=1), config, 0.85, bandwidth)


def test_more_rows_of_experts_than_reckoned_with_are_told_and_reckoned_with(pair: Team) -> None:
    """Of a tenth of an even share the layers seem to fit, and do not."""
    config, setting = ParallelConfig(dp=2, ep=2), Setting(activation_bytes=10**9)
    free = pair.run(train_bound, setting, config)
    modest = pair.run(train_bound, setting, config, None, 0.1)
    bound = math.ceil(modest[0].choices[0].held_bytes)
    assert bound < min(one.ledger.peak_bytes for one in free)
    bounded = replace(setting, activation_bytes=bound)
    found = pair.run(train_bound, bounded, config, None, 0.1)
    for mine, theirs in zip(found, free, strict=True):
        check_same_bits(mine.trained, theirs.trained)
        assert {*mine.choices[0].treatments} == {KEEP}
        assert any("above the" in warning for warning in mine.warnings)
        # Ranks that exchange within a layer compute the same ones again.
        assert [c.treatments for c in mine.choices] == [c.treatments for c in found[0].choices]
    assert any(RECOMPUTE in choice.treatments for choice in found[0].choices)


def test_gathered_weights_are_no_activations(pair: Team) -> None:
    """What blocks save of sharded weights is what they save of whole ones, byte for byte."""
    setting = Setting(activation_bytes=10**9)
    sharded, whole = (
        pair.run(train_bound, setting, config)
        for config in (ParallelConfig(fsdp=2), ParallelConfig(dp=2))
    )
    for mine, theirs in zip(sharded, whole, strict=True):
        assert mine.ledger.peak_bytes == theirs.ledger.peak_bytes


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
