"""Training in pipeline stages and data ranks against one process: steps, weights, state, resume."""

import logging
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch
from spread_training import Run, train_one_conversation, train_spread
from team import Team
from test_zero import EXACT, Trained, check_equal, train_alone
from tiny_training import TINY, Mode, Setting, make_model

from fivefold.errors import ConfigError
from fivefold.models.convert import write_checkpoint
from fivefold.parallel.build import ReleasedWeights, build_model
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.pipeline.placement import place_stages
from fivefold.parallel.pipeline.rolling import RollingLedger
from fivefold.recipes.launch import split_overrides
from fivefold.stage import OneProcess
from fivefold.train.piped import PipedModel

pytestmark = pytest.mark.dist

ROLLING = ParallelConfig(pp=2, dp=2, zero=2, schedule="interleaved", chunks=3, bucket_bytes=2**15)


def train_built(
    world: World, setting: Setting, config: ParallelConfig, checkpoint: Path
) -> tuple[float, Trained]:
    """Train stages that were read from a checkpoint; return the share of bytes that was read."""
    mesh = Mesh(config, world)
    source = ReleasedWeights(checkpoint)
    model = build_model(source.config, source, mesh, "cpu")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    made = sum(p.numel() for p in model.parameters() if not p.is_meta)
    share = made / sum(p.numel() for p in model.parameters())
    run = Run(mesh, setting, model.train())
    return share, run.end(run.take_steps(range(3)))


def test_stages_that_were_built_alone_train_as_one_process(four: Team, tmp_path: Path) -> None:
    setting = Setting(dtype="float32", clip_norm=1e9)
    model = make_model(setting)
    write_checkpoint(model, tmp_path / "checkpoint", max_shard_bytes=60_000)
    found = four.run(train_built, setting, ROLLING, tmp_path / "checkpoint")
    check_all([trained for _, trained in found], train_alone(setting, 3), 2e-3)
    # Between them they read everything; the embedding is read twice.
    assert sum(share for share, _ in found) / 2 < 1.1


def check_all(found: list[Trained], wanted: Trained, limit: float = EXACT) -> None:
    """The first rank has the whole model in the end, the others what they trained."""
    assert found[0].weights.keys() == wanted.weights.keys()
    state = {name: value for one in found for name, value in one.state.items()}
    for one in found:
        for name, value in one.state.items():
            assert torch.equal(value, state[name]), f"copies of {name} differ"
        own = {name: wanted.weights[name] for name in one.weights}
        whole = Trained(wanted.results, own, wanted.state, {})
        check_equal(Trained(one.results, one.weights, state, {}), whole, limit)


@pytest.mark.parametrize(
    ("mode", "schedule"),
    [
        ("dense", "zb_h1"),
        ("warm_up", "zb_v"),
        ("sparse", "interleaved"),
        *(
            pytest.param(mode, schedule, marks=pytest.mark.slow)
            for mode, schedule in [
                ("dense", "1f1b"),
                ("dense", "zb_v"),
                ("dense", "interleaved"),
                ("warm_up", "1f1b"),
                ("warm_up", "zb_h1"),
                ("warm_up", "interleaved"),
                ("sparse", "1f1b"),
                ("sparse", "zb_h1"),
                ("sparse", "zb_v"),
            ]
        ),
    ],
)
def test_five_steps_in_two_stages_equal_one_process(pair: Team, mode: Mode, schedule: str) -> None:
    setting = Setting(mode=mode)
    config = ParallelConfig(pp=2, schedule=schedule)
    check_all(pair.run(train_spread, setting, config, 5), train_alone(setting, 5))


FOUR = {
    "zero_1": ParallelConfig(pp=2, dp=2),
    "zero_0": ParallelConfig(pp=2, dp=2, zero=0),
    "zb_v": ParallelConfig(pp=2, dp=2, schedule="zb_v", bucket_bytes=2**15),
    "mtp_with_layers": ParallelConfig(pp=2, dp=2, mtp_stage="before_last"),
    "four_stages": ParallelConfig(pp=4, pieces=(2, 2, 1, 1)),
    "zero_2_interleaved": ROLLING,
    "zero_2_zb_v": ParallelConfig(pp=2, dp=2, zero=2, schedule="zb_v", deferred_bytes=2**16),
    "zero_2_1f1b": ParallelConfig(pp=2, dp=2, zero=2, mtp_stage="last"),
}
FAST = {("dense", "zero_1"), ("dense", "mtp_with_layers"), ("sparse", "zero_2_interleaved")}
FAST |= {("sparse", name) for name in ("zero_0", "four_stages")} | {("dense", "zero_2_zb_v")}


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        pytest.param(mode, name, marks=() if (mode, name) in FAST else pytest.mark.slow)
        for mode in ("dense", "sparse")
        for name in FOUR
    ],
)
def test_five_steps_of_four_ranks_equal_one_process(four: Team, mode: Mode, name: str) -> None:
    setting = Setting(mode=mode)
    check_all(four.run(train_spread, setting, FOUR[name], 5), train_alone(setting, 5))


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(pp=2, mtp_stage="last"),
        ParallelConfig(pp=2, dp=2, zero=2, schedule="interleaved", chunks=3),
    ],
    ids=["pp2", "zero_2"],
)
def test_gradients_of_a_copy_in_bf16_add_up_in_fp32(
    pair: Team, four: Team, config: ParallelConfig
) -> None:
    setting = Setting(dtype="float32", compute_dtype="bfloat16", clip_norm=1e9)
    team = pair if config.size == 2 else four
    # The balance loss is divided before or after it is summed; all else has the same bits.
    check_all(team.run(train_spread, setting, config, 1), train_alone(setting, 1), 1e-2)


class Rolled(NamedTuple):
    """What one step of rolling gradients cost a rank."""

    ledger: RollingLedger
    full_bytes: int
    run_bytes: list[int]
    sent_bytes: float
    held: set[str]


def train_rolled(world: World, setting: Setting) -> tuple[Rolled, Trained]:
    mesh = Mesh(ROLLING, world)
    run = Run(mesh, setting)
    piped = run.spreading.compute
    assert isinstance(piped, PipedModel)
    assert piped.rolling is not None
    mesh.ledger.reset()
    results = run.take_steps(range(1))
    gradients = piped.rolling.gradients
    rolled = Rolled(
        gradients.ledger,
        gradients.full_bytes,
        [gradients.run_bytes(stage) for stage in piped.stages],
        mesh.ledger.sent_bytes("reduce_scatter"),
        set(piped.rows),
    )
    return rolled, run.end(results)


def test_two_full_gradients_at_most_and_the_bytes_of_the_formula(four: Team) -> None:
    setting = Setting(mode="sparse", microbatch_rows=1)
    found = four.run(train_rolled, setting)
    check_all([trained for _, trained in found], train_alone(setting, 1))
    for rolled, _ in found:
        ledger = rolled.ledger
        assert rolled.full_bytes < ledger.peak_bytes <= 2 * rolled.full_bytes
        # A data rank has four microbatches: two runs of two in each of the stages that learn alone.
        learning = [size for size in rolled.run_bytes if size]
        assert ledger.runs == 2 * len(learning)
        # 99 rows of the embedding make two shards of 50; it is reduced once.
        embedding = 2 * 50 * 64 * 8 if "embed_tokens.weight" in rolled.held else 0
        assert rolled.sent_bytes == (2 * sum(rolled.run_bytes) + embedding) / 2


def test_zero_2_with_nothing_to_save_warns_once(four: Team) -> None:
    config = ROLLING.model_copy(update={"chunks": 1})
    first, *others = four.run(warnings_of, Setting(), config)
    assert "saves no memory with 1 pipeline stages a rank and 2 ranks along dp and cp" in first
    assert others == [""] * 3


def warnings_of(world: World, setting: Setting, config: ParallelConfig) -> str:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("fivefold.train.piped")
    logger.addHandler(handler)
    try:
        Run(Mesh(config, world), setting).spreading.end()
    finally:
        logger.removeHandler(handler)
    return " ".join(told)


def save_piped(world: World, setting: Setting, config: ParallelConfig, directory: Path) -> None:
    run = Run(Mesh(config, world), setting)
    run.take_steps(range(2))
    run.save(directory, 2)
    run.spreading.end()


def resume(
    world: World | None, setting: Setting, config: ParallelConfig, directory: Path
) -> Trained:
    run = Run(OneProcess() if world is None else Mesh(config, world), setting)
    assert run.load(directory) == 2
    return run.end(run.take_steps(range(2, 5)))


@pytest.mark.slow
def test_training_goes_on_on_any_mesh(pair: Team, four: Team, tmp_path: Path) -> None:
    setting = Setting(mode="sparse")
    whole = train_alone(setting, 5)
    wanted = Trained(whole.results[2:], whole.weights, whole.state, {})
    four.run(save_piped, setting, ParallelConfig(pp=2, dp=2, zero=2), tmp_path)
    check_all([resume(None, setting, ParallelConfig(), tmp_path)], wanted)
    check_all(pair.run(resume, setting, ParallelConfig(dp=2), tmp_path), wanted)
    config = ParallelConfig(pp=2, schedule="zb_v", mtp_stage="last")
    check_all(pair.run(resume, setting, config, tmp_path), wanted)
    config = ParallelConfig(pp=4, pieces=(2, 2, 1, 1))
    check_all(four.run(resume, setting, config, tmp_path), wanted)


def train_spoilt(world: World, setting: Setting, config: ParallelConfig) -> Trained:
    """The last stage's rank has a weight that is not a number in the second step."""
    run = Run(Mesh(config, world), setting)
    results = run.take_steps(range(1))
    norm = run.spreading.compute.model.norm.weight
    before = norm.detach().clone()
    if norm.numel():
        norm.data[0] = torch.nan
    results += run.take_steps(range(1, 2))
    norm.data.copy_(before)
    return run.end(results)


@pytest.mark.parametrize("zero", [1, 2])
def test_nan_in_one_stage_skips_the_step_on_all(four: Team, zero: Literal[1, 2]) -> None:
    setting = Setting()
    before = train_alone(setting, 1)
    found = four.run(train_spoilt, setting, ParallelConfig(pp=2, dp=2, zero=zero))
    for one in found:
        assert [result.is_skipped for result in one.results] == [False, True]
        one.results.pop()
    check_all(found, before)


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(dp=2),
        ParallelConfig(pp=2, dp=2),
        # The data rank without rows runs a blank microbatch.
        ParallelConfig(pp=2, dp=2, zero=2, schedule="interleaved", chunks=3),
    ],
    ids=["dp2", "pp2_dp2", "zero_2"],
)
def test_a_last_step_with_fewer_rows_than_ranks_equals_one_process(
    pair: Team, four: Team, config: ParallelConfig
) -> None:
    setting = Setting()
    wanted = train_one_conversation(None, setting, ParallelConfig())
    # 17 places, of which every third, both beginnings of documents among them, is not learned.
    assert wanted.results[0].measured["answer_tokens"] == 17 - 6
    team = pair if config.size == 2 else four
    check_all(team.run(train_one_conversation, setting, config), wanted)


@pytest.mark.parametrize("refused", ["zero=3", "schedule=round_robin"])
def test_what_a_pipeline_cannot_do_is_refused(refused: str) -> None:
    with pytest.raises(ConfigError, match=r"`zero=\d`|`schedule=round_robin`"):
        split_overrides(["parallel.pp=2", f"parallel.{refused}"])


def test_pieces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="`pieces` for 2 stages"):
        place_stages(TINY, ParallelConfig(pp=2, pieces=(2, 2, 2)))
    with pytest.raises(ConfigError, match="add up to 6"):
        place_stages(TINY, ParallelConfig(pp=2, pieces=(2, 2)))
