"""Training steps of the tiny model spread over a mesh, as the loop takes them."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from test_zero import Trained
from tiny_training import INDEXER, Setting, copies, make_model, rows_of_step
from torch import Tensor
from torch.distributed.tensor import DTensor

from fivefold.data.loader import Rows
from fivefold.models.transformer import Transformer
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.stage import OneProcess, Ranks
from fivefold.train.balance import BalanceTracker
from fivefold.train.batch import microbatches
from fivefold.train.checkpoint import save_state
from fivefold.train.compute import ComputeModel
from fivefold.train.data_parallel import spread
from fivefold.train.losses import Objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.sft import sft_objective
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.step import StepResult, own_microbatches, train_step


class Run:
    """One rank's training; `plain` is the model that a stage gave."""

    def __init__(self, ranks: Ranks, setting: Setting, plain: Transformer | None = None) -> None:
        self.setting = setting
        self.plain = make_model(setting) if plain is None else plain
        named, config = self.plain.named_parameters(), setting.config
        optimizer = HybridOptimizer(named, self.plain.config, config.optimizer)
        staged = StagedLanguageLoss(self.plain.config, config, INDEXER[setting.mode])
        self.spreading = spread(self.plain, optimizer, config, ranks, staged)
        self.tracker = BalanceTracker(self.spreading.holder)

    def take_step(
        self, rows: Rows, tokens_before: int, objective: Objective | None = None
    ) -> StepResult:
        spreading = self.spreading
        return train_step(
            spreading.compute,
            spreading.optimizer,
            self.tracker,
            functools.partial(objective or self.setting.objective, context=spreading.context),
            rows,
            tokens_before,
            self.setting.config,
            microbatch_rows=self.setting.microbatch_rows,
            sharding=spreading.sharding,
        )

    def take_steps(self, steps: range) -> list[StepResult]:
        return [self.take_step(rows_of_step(step), 1000 * step) for step in steps]

    def save(self, directory: Path, step: int) -> None:
        parts = self.spreading
        save_state(directory, step, parts.weights, parts.optimizer, {"step": step}, parts.saver)

    def load(self, directory: Path) -> int:
        """Go on from a state; what it lacks is zero, and shows."""
        with torch.no_grad():
            for value in self.spreading.weights.state_dict().values():
                (value.to_local() if isinstance(value, DTensor) else value).zero_()
        progress = self.spreading.load(directory)
        assert progress is not None, "there is a state"
        return progress["step"]

    def end(self, results: list[StepResult]) -> Trained:
        state = {n: whole_of(t) for n, t in self.spreading.optimizer.state_dict().items()}
        self.spreading.end()
        left = {n: t for n, t in self.plain.state_dict().items() if not t.is_meta}
        return Trained(results, copies(left), state, {})


def gradients_spread(
    world: World, setting: Setting, config: ParallelConfig
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of one step and all gradients, whole."""
    mesh = Mesh(config, world)
    spreading = Run(mesh, setting).spreading
    model, sharding = spreading.compute.model, spreading.sharding
    assert sharding is not None, "there are several ranks"
    rows, total = rows_of_step(0), torch.zeros((), dtype=torch.float64)
    spreading.compute.refresh()
    for part in own_microbatches(rows, setting.microbatch_rows, mesh.data):
        assert part is not None, "rows divide among ranks"
        loss = setting.objective(model, part, rows, 0, spreading.context).total
        loss.backward()
        spreading.compute.collect()
        total += loss.detach()
    sharding.finish()
    gradients = {
        name: whole_of(sharding.as_global(name, row.grad))
        for name, row in sharding.rows.items()
        if row.grad is not None
    }
    return float(all_reduce(total, mesh.everyone)), gradients


def gradients_alone(setting: Setting) -> tuple[float, dict[str, Tensor]]:
    """Do the same in one process: the oracle."""
    model = make_model(setting)
    compute = ComputeModel(model, getattr(torch, setting.config.compute_dtype))
    compute.refresh()
    rows, total = rows_of_step(0), 0.0
    for part in microbatches(rows, setting.microbatch_rows):
        loss = setting.objective(compute.model, part, rows, 0).total
        loss.backward()
        compute.collect()
        total += float(loss.detach())
    named = model.named_parameters()
    return total, {name: value.grad for name, value in named if value.grad is not None}


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def train_spread(world: World, setting: Setting, config: ParallelConfig, steps: int) -> Trained:
    """Take steps on a mesh."""
    run = Run(Mesh(config, world), setting)
    return run.end(run.take_steps(range(steps)))


def train_in_turns(
    world: World, setting: Setting, turns: list[tuple[ParallelConfig, range]], directory: Path
) -> list[Trained]:
    """Train on one mesh after the other, each from the state of the one before."""
    found = []
    for config, steps in turns:
        run = Run(Mesh(config, world), setting)
        if steps.start:
            assert run.load(directory) == steps.start
        results = run.take_steps(steps)
        run.save(directory, steps.stop)
        found.append(run.end(results))
    return found


def train_one_conversation(
    world: World | None, setting: Setting, config: ParallelConfig
) -> Trained:
    """Take a step on a single row, where all trains with every third token not learned."""
    run = Run(OneProcess() if world is None else Mesh(config, world), setting)
    rows = rows_of_step(0).part(slice(0, 1))
    if setting.mode != "dense":
        return run.end([run.take_step(rows, 0)])
    weight = (np.arange(rows.ids.size) % 3 > 0).astype(np.float32).reshape(rows.ids.shape)
    rows = replace(rows, weight=weight * (rows.positions > 0))
    return run.end([run.take_step(rows, 0, sft_objective(setting.config))])
