"""Training steps of the tiny model spread over a mesh, as the loop takes them."""

import functools
from pathlib import Path

import torch
from test_zero import Trained
from tiny_training import INDEXER, Setting, copies, make_model, rows_of_step
from torch import Tensor
from torch.distributed.tensor import DTensor

from fivefold.data.loader import Rows
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.stage import Ranks
from fivefold.train.balance import BalanceTracker
from fivefold.train.checkpoint import save_state
from fivefold.train.data_parallel import spread
from fivefold.train.losses import Objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.step import StepResult, train_step


class Run:
    """One rank's training; `plain` is the model that a stage gave."""

    def __init__(self, ranks: Ranks, setting: Setting) -> None:
        self.setting = setting
        self.plain = make_model(setting)
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


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def train_spread(world: World, setting: Setting, config: ParallelConfig, steps: int) -> Trained:
    """Take steps on a mesh."""
    run = Run(Mesh(config, world), setting)
    return run.end(run.take_steps(range(steps)))
