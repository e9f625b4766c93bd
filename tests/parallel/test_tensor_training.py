"""Tensor, sequence and expert parallelism against one process: gradients, steps, bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from team import Team
from test_zero import EXACT, Trained, check_equal, train_alone
from tiny_training import Mode, Setting, copies, furthest, make_model, rows_of_step
from torch import Tensor
from torch.distributed.tensor import DTensor

from fivefold.models.transformer import Transformer
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.tensor import SplitModel, head_loss
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.train import losses
from fivefold.train.balance import BalanceTracker
from fivefold.train.compute import ComputeModel
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.step import own_microbatches, train_step

pytestmark = pytest.mark.dist

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


@contextmanager
def head_of(model: Transformer) -> Iterator[None]:
    """Make the objective use the model's own head."""
    with mock.patch.object(losses, "chunked_loss_and_logprobs", head_loss(model)):
        yield


def train_split(world: World, setting: Setting, config: ParallelConfig, steps: int) -> Trained:
    """Train on a mesh with `tp` or `ep`."""
    mesh = Mesh(config, world)
    model = make_model(setting)
    whole = HybridOptimizer(model.named_parameters(), model.config, setting.config.optimizer)
    split = SplitModel(model, mesh)
    sharding = SplitRows(split)
    optimizer = whole.sharded(sharding)
    compute = ComputeModel(split.model, getattr(torch, setting.config.compute_dtype))
    tracker = BalanceTracker(split.model)
    results = []
    with head_of(compute.model):
        for step in range(steps):
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
    state = {name: whole_of(value) for name, value in optimizer.state_dict().items()}
    split.materialise()
    return Trained(results, copies(model.state_dict()), state, sent)


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def gradients_split(
    world: World, setting: Setting, config: ParallelConfig
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of one step and all gradients, whole."""
    mesh = Mesh(config, world)
    split = SplitModel(make_model(setting), mesh)
    sharding = SplitRows(split)
    total = torch.zeros((), dtype=torch.float64)
    with head_of(split.model):
        for part in own_microbatches(rows_of_step(0), setting.microbatch_rows, mesh.data):
            assert part is not None
            loss = setting.objective(split.model, part, rows_of_step(0), 0).total
            loss.backward()
            total += loss.detach()
    sharding.finish()
    gradients = {
        name: whole_of(sharding.as_global(name, row.grad))
        for name, row in sharding.rows.items()
        if row.grad is not None
    }
    if mesh.data.handle is not None:
        torch.distributed.all_reduce(total, group=mesh.data.handle)
    return float(total), gradients


def gradients_alone(setting: Setting) -> tuple[float, dict[str, Tensor]]:
    model = make_model(setting)
    total = 0.0
    rows = rows_of_step(0)
    for begin in range(0, len(rows.ids), setting.microbatch_rows):
        part = rows.part(slice(begin, begin + setting.microbatch_rows))
        loss = setting.objective(model, part, rows, 0).total
        loss.backward()
        total += float(loss.detach())
    named = model.named_parameters()
    return total, {name: value.grad for name, value in named if value.grad is not None}


def team_of(mesh: str, pair: Team, four: Team) -> Team:
    return pair if MESHES[mesh].size == 2 else four


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])
def test_loss_and_all_gradients_equal_one_process(
    pair: Team, four: Team, mode: Mode, mesh: str
) -> None:
    setting = Setting(mode=mode)
    loss, gradients = gradients_alone(setting)
    for found_loss, found in team_of(mesh, pair, four).run(gradients_split, setting, MESHES[mesh]):
        assert found_loss == pytest.approx(loss, rel=EXACT)
        assert furthest(found, gradients)[0] <= EXACT, furthest(found, gradients)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_five_steps_equal_one_process(pair: Team, four: Team, mode: Mode, mesh: str) -> None:
    setting = Setting(mode=mode)
    wanted = train_alone(setting, 5)
    for found in team_of(mesh, pair, four).run(train_split, setting, MESHES[mesh], 5):
        check_equal(found, wanted, EXACT)
