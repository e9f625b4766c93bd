"""Training in pipeline stages and data ranks against one process: steps, weights, state, resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from team import Team
from test_zero import EXACT, Trained, check_equal, train_alone
from tiny_training import Mode, Setting, copies, make_model, rows_of_step
from torch import Tensor
from torch.distributed.tensor import DTensor

from fivefold.errors import ConfigError
from fivefold.models.surroundings import IndexerMode
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.recipes.launch import split_overrides
from fivefold.stage import OneProcess, Ranks
from fivefold.train.balance import BalanceTracker
from fivefold.train.checkpoint import load_state, save_state
from fivefold.train.data_parallel import Spreading, spread
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.piped import make_parts
from fivefold.train.sft import sft_objective
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.step import StepResult, train_step

pytestmark = pytest.mark.dist

INDEXER: dict[Mode, IndexerMode] = {"dense": "frozen", "warm_up": "warm_up", "sparse": "sparse"}


def open_training(ranks: Ranks, setting: Setting) -> Spreading:
    model = make_model(setting)
    optimizer = HybridOptimizer(model.named_parameters(), model.config, setting.config.optimizer)
    staged = StagedLanguageLoss(model.config, setting.config, INDEXER[setting.mode])
    return spread(model, optimizer, setting.config, ranks, staged)


def take_steps(spreading: Spreading, setting: Setting, steps: range) -> list[StepResult]:
    tracker = BalanceTracker(spreading.holder)
    return [
        train_step(
            spreading.compute,
            spreading.optimizer,
            tracker,
            setting.objective,
            rows_of_step(step),
            1000 * step,
            setting.config,
            microbatch_rows=setting.microbatch_rows,
            sharding=spreading.sharding,
        )
        for step in steps
    ]


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def close_training(spreading: Spreading, results: list[StepResult]) -> Trained:
    state = {n: whole_of(t) for n, t in spreading.optimizer.state_dict().items()}
    spreading.end()
    return Trained(results, copies(spreading.holder.state_dict()), state, {})


def train_piped(world: World, setting: Setting, config: ParallelConfig, steps: int) -> Trained:
    spreading = open_training(Mesh(config, world), setting)
    return close_training(spreading, take_steps(spreading, setting, range(steps)))


def check_all(found: list[Trained], wanted: Trained, limit: float = EXACT) -> None:
    """Every rank has the whole model in the end; the state of its own stages only."""
    state = {name: value for one in found for name, value in one.state.items()}
    for one in found:
        for name, value in one.state.items():
            assert torch.equal(value, state[name]), f"copies of {name} differ"
        check_equal(Trained(one.results, one.weights, state, {}), wanted, limit)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1", "zb_v", "interleaved"])
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
def test_five_steps_in_two_stages_equal_one_process(pair: Team, mode: Mode, schedule: str) -> None:
    setting = Setting(mode=mode)
    config = ParallelConfig(pp=2, schedule=schedule)
    check_all(pair.run(train_piped, setting, config, 5), train_alone(setting, 5))


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(pp=2, dp=2),
        ParallelConfig(pp=2, dp=2, zero=0),
        ParallelConfig(pp=2, dp=2, schedule="zb_v", bucket_bytes=2**15),
        ParallelConfig(pp=2, dp=2, mtp_stage="before_last"),
        ParallelConfig(pp=4, pieces=(2, 2, 1, 1)),
    ],
    ids=["zero_1", "zero_0", "zb_v", "mtp_with_layers", "four_stages"],
)
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_five_steps_of_four_ranks_equal_one_process(
    four: Team, mode: Mode, config: ParallelConfig
) -> None:
    setting = Setting(mode=mode)
    check_all(four.run(train_piped, setting, config, 5), train_alone(setting, 5))


def test_gradients_of_a_copy_in_bf16_add_up_in_fp32(pair: Team) -> None:
    setting = Setting(dtype="float32", compute_dtype="bfloat16", clip_norm=1e9)
    found = pair.run(train_piped, setting, ParallelConfig(pp=2, mtp_stage="last"), 1)
    # The balance loss is divided before or after it is summed; all else has the same bits.
    check_all(found, train_alone(setting, 1), 1e-2)


def save_piped(world: World, setting: Setting, config: ParallelConfig, directory: Path) -> None:
    spreading = open_training(Mesh(config, world), setting)
    take_steps(spreading, setting, range(2))
    progress = {"step": 2}
    save_state(directory, 2, spreading.weights, spreading.optimizer, progress, spreading.saver)
    spreading.end()


def resume(
    world: World | None, setting: Setting, config: ParallelConfig, directory: Path
) -> Trained:
    ranks = OneProcess() if world is None else Mesh(config, world)
    spreading = open_training(ranks, setting)
    # What the state lacks would stay as it is.
    with torch.no_grad():
        for value in spreading.weights.state_dict().values():
            value.zero_()
    found = load_state(directory, spreading.weights, spreading.optimizer, spreading.mesh)
    assert found == {"step": 2}
    return close_training(spreading, take_steps(spreading, setting, range(2, 5)))


def test_training_goes_on_on_any_mesh(pair: Team, four: Team, tmp_path: Path) -> None:
    setting = Setting(mode="sparse")
    whole = train_alone(setting, 5)
    wanted = Trained(whole.results[2:], whole.weights, whole.state, {})
    four.run(save_piped, setting, ParallelConfig(pp=2, dp=2), tmp_path)
    check_all([resume(None, setting, ParallelConfig(), tmp_path)], wanted)
    check_all(pair.run(resume, setting, ParallelConfig(dp=2), tmp_path), wanted)
    config = ParallelConfig(pp=2, schedule="zb_v", mtp_stage="last")
    check_all(pair.run(resume, setting, config, tmp_path), wanted)
    config = ParallelConfig(pp=4, pieces=(2, 2, 1, 1))
    check_all(four.run(resume, setting, config, tmp_path), wanted)


def train_spoilt(world: World, setting: Setting, config: ParallelConfig) -> Trained:
    """The last stage's rank has a weight that is not a number in the second step."""
    spreading = open_training(Mesh(config, world), setting)
    results = take_steps(spreading, setting, range(1))
    norm = spreading.compute.model.norm.weight
    before = norm.detach().clone()
    if norm.numel():
        norm.data[0] = torch.nan
    results += take_steps(spreading, setting, range(1, 2))
    norm.data.copy_(before)
    return close_training(spreading, results)


def test_nan_in_one_stage_skips_the_step_on_all(four: Team) -> None:
    setting = Setting()
    before = train_alone(setting, 1)
    found = four.run(train_spoilt, setting, ParallelConfig(pp=2, dp=2))
    for one in found:
        assert [result.is_skipped for result in one.results] == [False, True]
        one.results.pop()
    check_all(found, before)


def train_one_conversation(
    world: World | None, setting: Setting, config: ParallelConfig
) -> Trained:
    """Take a step on a single row in which some tokens are learned."""
    spreading = open_training(OneProcess() if world is None else Mesh(config, world), setting)
    whole = rows_of_step(0).part(slice(0, 1))
    weight = (np.arange(whole.ids.size) % 3 > 0).astype(np.float32).reshape(whole.ids.shape)
    weight *= whole.positions > 0
    result = train_step(
        spreading.compute,
        spreading.optimizer,
        BalanceTracker(spreading.holder),
        sft_objective(setting.config),
        replace(whole, weight=weight),
        0,
        setting.config,
        microbatch_rows=setting.microbatch_rows,
        sharding=spreading.sharding,
    )
    return close_training(spreading, [result])


@pytest.mark.parametrize("config", [ParallelConfig(dp=2), ParallelConfig(pp=2, dp=2)])
def test_a_last_step_with_fewer_rows_than_ranks_equals_one_process(
    pair: Team, four: Team, config: ParallelConfig
) -> None:
    setting = Setting()
    wanted = train_one_conversation(None, setting, ParallelConfig())
    # 17 places, of which every third, both beginnings of documents among them, is not learned.
    assert wanted.results[0].measured["answer_tokens"] == 17 - 6
    team = pair if config.size == 2 else four
    check_all(team.run(train_one_conversation, setting, config), wanted)


@pytest.mark.parametrize("refused", ["zero=2", "fsdp=2", "schedule=round_robin"])
def test_what_a_pipeline_cannot_do_is_refused(refused: str) -> None:
    with pytest.raises(ConfigError, match=r"`zero=\d`|`schedule=round_robin`"):
        split_overrides(["parallel.pp=2", f"parallel.{refused}"])


def test_pieces_that_do_not_fit_are_refused() -> None:
    model = make_model(Setting())
    with pytest.raises(ConfigError, match="`pieces` for 2 stages"):
        make_parts(model, ParallelConfig(pp=2, pieces=(2, 2, 2)), 2)
    with pytest.raises(ConfigError, match="add up to 6"):
        make_parts(model, ParallelConfig(pp=2, pieces=(2, 2)), 2)
