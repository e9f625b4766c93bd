"""Data parallelism with ZeRO 0 to 3 against one process: gradients, steps, bytes, memory."""

import functools
import math
from dataclasses import dataclass

import pytest
import torch
from team import CaseError, Team
from tiny_training import Mode, Setting, copies, furthest, make_model, rows_of_step
from torch import Tensor
from torch.distributed.tensor import DTensor

from fivefold.models.transformer import BlockOutput, Transformer
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.fsdp import shard_weights
from fivefold.parallel.mesh import ALONE, Mesh, World
from fivefold.parallel.row_shard import padded_elements
from fivefold.parallel.tensor import SplitModel
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.parallel.zero import Zero
from fivefold.train.balance import BalanceTracker
from fivefold.train.compute import ComputeModel
from fivefold.train.data_parallel import SplitCompute
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.step import StepResult, own_microbatches, train_step

pytestmark = pytest.mark.dist

EXACT = 1e-10
"""Largest relative difference that another order of fp64 sums may make."""


@dataclass
class Trained:
    """What some steps of training left."""

    results: list[StepResult]
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    sent_bytes: dict[str, float]
    peak_bucket_bytes: int = 0


@functools.cache
def train_alone(setting: Setting, steps: int) -> Trained:
    """The oracle: one process, no mesh."""
    model = make_model(setting)
    optimizer = HybridOptimizer(model.named_parameters(), model.config, setting.config.optimizer)
    compute = ComputeModel(model, getattr(torch, setting.config.compute_dtype))
    tracker = BalanceTracker(model)
    results = [
        train_step(
            compute,
            optimizer,
            tracker,
            setting.objective,
            rows_of_step(step),
            1000 * step,
            setting.config,
            microbatch_rows=setting.microbatch_rows,
        )
        for step in range(steps)
    ]
    return Trained(results, copies(model.state_dict()), copies(optimizer.state_dict()), {})


def train_together(
    world: World, setting: Setting, config: ParallelConfig, steps: int, nan_rank: int = -1
) -> Trained:
    """The same on a mesh; `nan_rank` has a gradient that is not a number in the last step."""
    mesh = Mesh(config, world)
    model = make_model(setting)
    dtype = getattr(torch, setting.config.compute_dtype)
    whole = HybridOptimizer(model.named_parameters(), model.config, setting.config.optimizer)
    split = None
    if config.zero_stage == 3:
        split, compute, sharding = open_sharded(model, mesh, dtype)
        tracker = BalanceTracker(split.model)
    else:
        compute = ComputeModel(model, dtype)
        computed = dict(compute.model.named_parameters())
        sharding = Zero(dict(model.named_parameters()), computed, mesh)
        tracker = BalanceTracker(model)
    optimizer = whole.sharded(sharding)
    results = []
    for step in range(steps):
        if world.rank == nan_rank and step == steps - 1:
            compute.model.layers[0].register_forward_hook(_spoil)
        mesh.ledger.reset()
        results.append(
            train_step(
                compute,
                optimizer,
                tracker,
                setting.objective,
                rows_of_step(step),
                1000 * step,
                setting.config,
                microbatch_rows=setting.microbatch_rows,
                sharding=sharding,
            )
        )
    sent = {op: mesh.ledger.sent_bytes(op) for op, _ in mesh.ledger.totals}
    state = {n: _whole(t) for n, t in optimizer.state_dict().items()}
    peak = 0
    if sharding.stream is not None:
        peak = sharding.stream.peak_bytes
    left = (model if split is None else split.model).state_dict()
    weights = {name: _whole(tensor) for name, tensor in left.items()}
    return Trained(results, weights, state, sent, peak)


def open_sharded(
    model: Transformer, mesh: Mesh, dtype: torch.dtype
) -> tuple[SplitModel, SplitCompute, SplitRows]:
    """Share the weights as `train.data_parallel` does."""
    split = SplitModel(model, mesh)
    shard_weights(split, dtype)
    return split, SplitCompute(split, dtype, casts=True), SplitRows(split)


def _spoil(_: object, __: object, output: BlockOutput) -> BlockOutput:
    return output._replace(x_BTD=output.x_BTD * math.nan)


def _whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor.detach().clone()


def check_equal(found: Trained, wanted: Trained, limit: float) -> None:
    for mine, theirs in zip(found.results, wanted.results, strict=True):
        # Metrics are rounded to fp32.
        assert mine.measured == pytest.approx(theirs.measured, rel=max(limit, 1e-6))
        assert mine.gradient_norms == pytest.approx(theirs.gradient_norms, rel=limit or 1e-6)
        pairs = zip(mine.expert_counts, theirs.expert_counts, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert furthest(found.weights, wanted.weights)[0] <= limit
    assert furthest(found.state, wanted.state)[0] <= limit


def mesh_of(zero: int, ranks: int = 2) -> ParallelConfig:
    return ParallelConfig(fsdp=ranks) if zero == 3 else ParallelConfig(dp=ranks, zero=zero)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
def test_steps_equal_one_process(pair: Team, mode: Mode, zero: int) -> None:
    # Where everything trains; the parts that train elsewhere show in two.
    setting, steps = Setting(mode=mode), 5 if mode == "sparse" else 2
    wanted = train_alone(setting, steps)
    for found in pair.run(train_together, setting, mesh_of(zero), steps):
        check_equal(found, wanted, EXACT)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_steps_are_bitwise_equal_where_two_microbatches_make_the_sum(pair: Team, zero: int) -> None:
    # a + b is b + a; the sum of the norm has another order, so that clipping is out of reach.
    setting = Setting(dtype="float32", microbatch_rows=4, clip_norm=1e9)
    wanted = train_alone(setting, 5)
    for found in pair.run(train_together, setting, mesh_of(zero), 5):
        check_equal(found, wanted, 0.0)


@pytest.mark.parametrize("zero", [1, 2])
def test_gradients_of_a_copy_in_bf16_add_up_in_fp32(pair: Team, zero: int) -> None:
    setting = Setting(dtype="float32", microbatch_rows=4, clip_norm=1e9, compute_dtype="bfloat16")
    wanted = train_alone(setting, 2)
    for found in pair.run(train_together, setting, mesh_of(zero), 2):
        check_equal(found, wanted, 0.0)


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(dp=4, zero=2, bucket_bytes=2**15),
        ParallelConfig(dp=2, fsdp=2),
    ],
    ids=["many_buckets", "copies_of_shards"],
)
def test_four_ranks_equal_one_process(four: Team, config: ParallelConfig) -> None:
    setting = Setting(mode="sparse")
    wanted = train_alone(setting, 2)
    for found in four.run(train_together, setting, config, 2):
        check_equal(found, wanted, EXACT)


def count_microbatches(world: World, rows: int, size: int) -> list[int | None]:
    group = Mesh(ParallelConfig(dp=world.size), world).data
    some = rows_of_step(0).part(slice(0, rows))
    return [None if p is None else len(p.ids) for p in own_microbatches(some, size, group)]


def test_rows_that_do_not_divide_leave_a_rank_waiting(pair: Team, four: Team) -> None:
    assert pair.run(count_microbatches, 7, 3) == [[3, 1], [3, None]]
    assert four.run(count_microbatches, 6, 1) == [[1, 1], [1, 1], [1, None], [1, None]]
    with pytest.raises(CaseError, match="at least one row in a step for each of 2 data ranks"):
        pair.run(count_microbatches, 1, 1)


def train_uneven(world: World, setting: Setting, config: ParallelConfig | None) -> Trained:
    """Take one step on 7 rows; no config: the oracle, in every process."""
    mesh = Mesh(config, world) if config is not None else Mesh()
    model = make_model(setting)
    compute = ComputeModel(model, torch.float64)
    sharding = Zero(dict(model.named_parameters()), dict(compute.model.named_parameters()), mesh)
    whole = HybridOptimizer(model.named_parameters(), model.config, setting.config.optimizer)
    optimizer = whole.sharded(sharding)
    result = train_step(
        compute,
        optimizer,
        BalanceTracker(model),
        setting.objective,
        rows_of_step(0).part(slice(0, 7)),
        0,
        setting.config,
        microbatch_rows=3,
        sharding=sharding,
    )
    state = {n: _whole(t) for n, t in optimizer.state_dict().items()}
    return Trained([result], copies(model.state_dict()), state, {})


@pytest.mark.parametrize("zero", [1, 2])
def test_uneven_rows_equal_one_process(pair: Team, zero: int) -> None:
    setting = Setting()
    wanted = train_uneven(ALONE, setting, None)
    for found in pair.run(train_uneven, setting, mesh_of(zero)):
        check_equal(found, wanted, EXACT)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_nan_on_one_rank_skips_the_step_on_all(pair: Team, zero: int) -> None:
    setting = Setting()
    before = train_alone(setting, 1)
    for found in pair.run(train_together, setting, mesh_of(zero), 2, 1):
        assert [result.is_skipped for result in found.results] == [False, True]
        assert furthest(found.weights, before.weights)[0] <= EXACT
        assert furthest(found.state, before.state)[0] <= EXACT


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_bytes_are_those_of_the_formulas(pair: Team, four: Team, zero: int, ranks: int) -> None:
    setting = Setting(dtype="float32")
    team = pair if ranks == 2 else four
    config = mesh_of(zero, ranks).model_copy(update={"bucket_bytes": 2**16})
    found = team.run(train_together, setting, config, 1)
    shapes = trained_shapes(setting)
    whole = 4 * (ranks * padded_elements(shapes, ranks) if zero else padded_elements(shapes, 1))
    once = whole * (ranks - 1) / ranks
    microbatches = 8 // ranks // 2
    for result in found:
        if zero == 0:
            # The rest: flags of gradients, expert counts, metrics.
            assert 2 * once <= result.sent_bytes["all_reduce"] <= 2 * once + 4000
            assert "reduce_scatter" not in result.sent_bytes
            continue
        assert result.sent_bytes["reduce_scatter"] == once * (microbatches if zero == 2 else 1)
        assert result.sent_bytes["all_gather"] == once
        assert result.sent_bytes["all_reduce"] < 4000
        # Stage 2 fills buckets while at most two travel.
        assert bool(result.peak_bucket_bytes) == (zero == 2)
        assert result.peak_bucket_bytes <= 4 * (2**16 + largest_bytes(shapes))


def test_state_and_gradient_bytes_follow_zero(pair: Team) -> None:
    setting = Setting(dtype="float32")
    shapes = trained_shapes(setting)
    for zero in (0, 1, 2, 3):
        ranks = 2 if zero else 1
        for rank, found in enumerate(pair.run(measure_bytes, setting, mesh_of(zero))):
            # 99 rows of the vocabulary make 50 and 49.
            local = 4 * held_elements(shapes, ranks, rank if zero else 0)
            # Muon has one average, AdamW two and a step count a parameter.
            assert found["rows"] == found["gradients"] == local
            assert local < found["state"] <= 2 * local + 4 * len(shapes) + 8
            assert found["weights"] == (local if zero == 3 else 4 * held_elements(shapes, 1, 0))


def held_elements(shapes: list[tuple[int, ...]], ranks: int, rank: int) -> int:
    """Return the elements in a rank's rows, row by row."""
    rows = [[row for row in range(s[0]) if row // -(-s[0] // ranks) == rank] for s in shapes]
    return sum(len(own) * math.prod(s[1:]) for own, s in zip(rows, shapes, strict=True))


def trained_shapes(setting: Setting) -> list[tuple[int, ...]]:
    named = make_model(setting).named_parameters()
    return [tuple(value.shape) for _, value in named if value.requires_grad]


def largest_bytes(shapes: list[tuple[int, ...]]) -> int:
    return max(4 * math.prod(shape) for shape in shapes)


def measure_bytes(world: World, setting: Setting, config: ParallelConfig) -> dict[str, int]:
    """Return what this rank holds between the last backward and the update."""
    mesh = Mesh(config, world)
    model = make_model(setting)
    whole = HybridOptimizer(model.named_parameters(), model.config, setting.config.optimizer)
    if config.zero_stage == 3:
        _, compute, sharding = open_sharded(model, mesh, torch.float32)
    else:
        compute = ComputeModel(model, torch.float32)
        computed = dict(compute.model.named_parameters())
        sharding = Zero(dict(model.named_parameters()), computed, mesh)
    optimizer = whole.sharded(sharding)
    for part in own_microbatches(rows_of_step(0), 2, sharding.data_group):
        assert part is not None
        setting.objective(compute.model, part, rows_of_step(0), 0).total.backward()
        sharding.collect()
    sharding.finish()
    weights = [p for p in compute.model.parameters() if p.requires_grad]
    holders = {id(p): p for p in [*weights, *sharding.rows.values()]}
    gradients = [p.grad for p in holders.values() if p.grad is not None]
    return {
        "rows": sum(row.nbytes for row in sharding.rows.values()),
        "state": sum(local_bytes(tensor) for tensor in optimizer.state_dict().values()),
        "gradients": sum(tensor.nbytes for tensor in gradients),
        "weights": sum(local_bytes(parameter.data) for parameter in weights),
    }


def local_bytes(tensor: Tensor) -> int:
    return tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes
