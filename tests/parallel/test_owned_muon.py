"""Owners of matrices: the same update as one process, little sent, work shared evenly."""

import math
from typing import Any

import pytest
import torch
from team import Team
from torch import Tensor, nn

from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.newton_schulz import COEFFICIENTS, orthogonalise
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.muon import (
    Matrix,
    MuonRule,
    OwnedMuon,
    imbalance,
    plan_owners,
    sent_elements,
)
from fivefold.parallel.row_shard import RowShard
from fivefold.train.muon import Muon, matrix_splits, update_scale
from fivefold.train.optimizer import to_matrices
from fivefold.train.optimizer_config import OptimizerConfig

SHAPES = {
    "layers.0.self_attn.q_a_proj.weight": (64, 128),
    # Latent and rotary rows are two matrices, cut anywhere by ranks of 10 rows.
    "layers.0.self_attn.kv_a_proj_with_mqa.weight": (40, 128),
    "layers.0.self_attn.kv_b_proj.weight": (4 * 56, 32),
    # 3 rows for 4 ranks: the last has none.
    "layers.1.mlp.gate.weight": (3, 128),
    "layers.1.mlp.experts.gate_up": (16, 128, 128),
    "layers.1.mlp.experts.down": (16, 128, 64),
    "layers.1.mlp.shared_experts.down_proj.weight": (130, 64),
}
SHAPE = preset("nano")


def updates(config: OptimizerConfig, world: World | None) -> tuple[dict[str, Tensor], float, float]:
    """Take three steps; return the whole weights, the bytes sent and the bytes of the formula."""
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(s, generator=generator).double() for n, s in SHAPES.items()}
    splits = matrix_splits(SHAPE, SHAPES, config)
    ranks, rank = (1, 0) if world is None else (world.size, world.rank)
    mesh = Mesh(ParallelConfig(dp=ranks), world) if world is not None else Mesh()
    shards = {name: RowShard(shape, ranks, rank) for name, shape in SHAPES.items()}
    parameters = {n: nn.Parameter(weights[n][shards[n].rows]) for n in SHAPES}
    if world is None:
        muon: Muon | OwnedMuon = Muon(parameters, splits, config)
    else:
        muon = owned(parameters, splits, mesh, config)
    for step in range(3):
        for number, name in enumerate(SHAPES):
            noise = torch.Generator().manual_seed(100 * step + number)
            gradient = torch.randn(SHAPES[name], generator=noise).double()
            # One parameter has no gradient in the second step.
            has = not (step == 1 and name.endswith("gate.weight"))
            parameters[name].grad = gradient[shards[name].rows].clone() if has else None
        muon.step(0.1 / (step + 1))
    sent = mesh.ledger.sent_bytes("all_to_all")
    formula = 0.0
    if isinstance(muon, OwnedMuon):
        active = [t for t in muon.tasks if not t.matrix.name.endswith("gate.weight")]
        elements = 2 * sent_elements(muon.tasks, rank) + sent_elements(active, rank)
        formula = 8.0 * elements
    return {n: p.detach() for n, p in parameters.items()}, sent, formula


def owned(parameters: Any, splits: Any, mesh: Mesh, config: OptimizerConfig) -> OwnedMuon:
    matrices = [m for name in SHAPES for m in to_matrices(name, SHAPES[name], splits[name])]
    rule = MuonRule(
        config.momentum,
        config.nesterov,
        config.weight_decay,
        lambda blocks: orthogonalise(blocks, COEFFICIENTS[config.ns], torch.float64),
        lambda rows, columns: update_scale(rows, columns, config),
    )
    return OwnedMuon(parameters, SHAPES, matrices, mesh.data, rule, bucket_bytes=2**17)


def run_updates(world: World, config: OptimizerConfig) -> tuple[dict[str, Tensor], float, float]:
    return updates(config, world)


@pytest.mark.dist
@pytest.mark.parametrize(
    "changes", [{}, {"muon_split": False}, {"nesterov": False, "split_rope": True}]
)
def test_rows_of_all_ranks_are_the_update_of_one(four: Team, changes: dict[str, Any]) -> None:
    config = OptimizerConfig(**changes).model_copy(update={"ns_dtype": "float64"})
    wanted, _, _ = updates(config, None)
    results = four.run(run_updates, config)
    for name, weight in wanted.items():
        whole = torch.cat([rows[name] for rows, _, _ in results])
        torch.testing.assert_close(whole, weight, rtol=1e-12, atol=1e-12, msg=name)
    for _, sent, formula in results:
        assert sent == formula
        assert sent > 0


def test_whole_matrices_need_no_communication() -> None:
    shards = {"experts": RowShard((16, 128, 64), 4, 0), "heads": RowShard((8 * 24, 64), 4, 0)}
    matrices = [Matrix("experts", ((128 * e, 128 * e + 128),), 64) for e in range(16)]
    matrices += [Matrix("heads", ((24 * h, 24 * h + 24),), 64) for h in range(8)]
    tasks = plan_owners(matrices, shards, 4)
    assert [task.owner for task in tasks] == [e // 4 for e in range(16)] + [
        h // 2 for h in range(8)
    ]
    assert all(task.is_local for task in tasks)
    assert sent_elements(tasks, 0) == 0
    assert imbalance(tasks, 4) == 1.0


def test_a_matrix_cut_by_ranks_is_sent_once_each_way() -> None:
    tasks = plan_owners([Matrix("w", ((0, 10),), 6)], {"w": RowShard((10, 6), 4, 0)}, 4)
    (task,) = tasks
    assert [task.held(rank) for rank in range(4)] == [18, 18, 18, 6]
    assert task.owner == 0
    # The owner returns 42 elements to those who sent them.
    assert [sent_elements(tasks, rank) for rank in range(4)] == [42, 18, 18, 6]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_owners_share_the_work_and_send_half_of_a_gather(ranks: int) -> None:
    with torch.device("meta"):
        model = Transformer(preset("mini"))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    splits = matrix_splits(model.config, shapes, OptimizerConfig())
    matrices = [m for n in shapes for m in to_matrices(n, shapes[n], splits[n])]
    shards = {name: RowShard(shapes[name], ranks, 0) for name in shapes if splits[name]}
    tasks = plan_owners(matrices, shards, ranks)
    assert imbalance(tasks, ranks) <= 1.3
    naive = ranks * sum(math.prod(shape) for name, shape in shapes.items() if splits[name])
    naive *= (ranks - 1) / ranks
    sent = sum(sent_elements(tasks, rank) for rank in range(ranks))
    assert sent <= 0.55 * naive


def test_matrices_are_the_blocks_of_the_splits() -> None:
    config = OptimizerConfig(split_rope=True)
    for merged in (False, True):
        policy = config.model_copy(update={"muon_split": not merged})
        splits = matrix_splits(SHAPE, SHAPES, policy)
        for name, shape in SHAPES.items():
            tensor = torch.arange(float(math.prod(shape))).view(shape)
            blocks = [
                block
                for split in splits[name]
                for block in split.view(tensor).reshape(*split.block_shape(shape))
            ]
            matrices = to_matrices(name, shape, splits[name])
            flat = tensor.view(-1, shape[-1])
            found = [torch.cat([flat[b:e] for b, e in m.ranges]) for m in matrices]
            assert len(found) == len(blocks)
            assert all(torch.equal(a, b) for a, b in zip(found, blocks, strict=True))
