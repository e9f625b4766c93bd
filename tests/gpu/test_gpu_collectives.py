"""NCCL with one rank: the groups, collectives, ZeRO and FSDP2 that several ranks would use.

The mesh makes process groups for axes of one rank too. Two ranks would need two GPUs; what ZeRO 1
and 2 send they leave out for one rank, and only sums over all ranks pass through NCCL.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_training import Setting, make_model, rows_of_step

from fivefold.parallel import collectives
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.fsdp import shard_weights
from fivefold.parallel.mesh import Group, Mesh, World
from fivefold.parallel.saver import Saver
from fivefold.parallel.tensor import SplitModel
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.parallel.zero import Zero
from fivefold.train.balance import BalanceTracker
from fivefold.train.checkpoint import load_state, save_state
from fivefold.train.compute import ComputeModel
from fivefold.train.data_parallel import SplitCompute
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.step import StepResult, train_step

pytestmark = pytest.mark.gpu


class GroupedMesh(Mesh):
    """A mesh of one rank whose groups are torch's."""

    def make_group(self, name: str, table: Sequence[Sequence[int]]) -> Group:
        assert [list(ranks) for ranks in table] == [[0]]
        made = dist.new_group([0])
        assert isinstance(made, dist.ProcessGroup)
        return Group(name, (0,), 0, made, self.ledger)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """This process, joined to itself as `parallel.launch` joins many."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield World(0, 1, store, torch.device("cuda", 0))
    dist.destroy_process_group()


def test_collectives_of_one_rank_change_nothing(world: World) -> None:
    group = GroupedMesh(ParallelConfig(), world).group("dp")
    values = torch.arange(12.0, device="cuda").view(4, 3)
    assert torch.equal(collectives.all_reduce(values.clone(), group), values)
    assert torch.equal(collectives.all_to_all(values, [4], [4], group), values)
    for send in (collectives.all_gather, collectives.reduce_scatter):
        received = torch.empty_like(values.view(-1))
        work = send(received, values.view(-1), group)
        assert work is not None
        work.wait()
        assert torch.equal(received.view(4, 3), values)
    assert collectives.sum_values([1.0, 2.0], group, values.device) == [1.0, 2.0]


def take_steps(
    compute: ComputeModel,
    optimizer: HybridOptimizer,
    tracker: BalanceTracker,
    setting: Setting,
    sharding: Zero | SplitRows | None,
) -> list[StepResult]:
    return [
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
        for step in range(2)
    ]


@pytest.mark.parametrize("zero", [1, 3])
def test_training_over_nccl_is_training_without_and_its_state_opens_on_a_cpu(
    world: World, zero: int, tmp_path: Path
) -> None:
    setting = Setting(mode="sparse")
    alone = make_model(setting).to("cuda")
    config = setting.config.optimizer
    optimizer = HybridOptimizer(alone.named_parameters(), alone.config, config)
    compute = ComputeModel(alone, torch.float64)
    wanted = take_steps(compute, optimizer, BalanceTracker(alone), setting, None)

    mesh = GroupedMesh(ParallelConfig().model_copy(update={"zero": zero}), world)
    model = make_model(setting).to("cuda")
    whole = HybridOptimizer(model.named_parameters(), model.config, config)
    sharding: Zero | SplitRows
    if zero == 3:
        split = SplitModel(model, mesh)
        shard_weights(split, torch.float64)
        compute, weights = SplitCompute(split, torch.float64, casts=True), split.model
        sharding = SplitRows(split)
    else:
        compute, weights = ComputeModel(model, torch.float64), model
        sharding = Zero(dict(model.named_parameters()), dict(model.named_parameters()), mesh)
    own = whole.sharded(sharding)
    found = take_steps(compute, own, BalanceTracker(compute.model), setting, sharding)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.measured == pytest.approx(theirs.measured, rel=1e-10)
    assert mesh.ledger.totals

    saver = Saver(mesh)
    save_state(tmp_path / "state", 2, weights, own, {"step": 2}, saver)
    saver.finish()
    here = make_model(setting)
    theirs = HybridOptimizer(here.named_parameters(), here.config, config)
    assert load_state(tmp_path / "state", here, theirs) == {"step": 2}
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(here.state_dict()[name], value.cpu(), rtol=1e-9, atol=1e-12)
