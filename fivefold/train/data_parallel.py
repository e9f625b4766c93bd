"""Spreading a training over ranks: who holds, computes, updates, saves and looks.

One process takes part as a mesh of one: its model holds the weights, a `ComputeModel` runs them,
nothing is shared. Otherwise `parallel.zero`, for sharded weights `parallel.fsdp`, or for a pipeline
`train.piped` stands between model and optimizer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fivefold.models.transformer import Transformer
from fivefold.parallel.fsdp import FullyShardedModel
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.saver import Saver
from fivefold.parallel.zero import Sharding, Zero
from fivefold.stage import Ranks
from fivefold.train.checkpoint import Weights
from fivefold.train.compute import ComputeModel
from fivefold.train.config import GradientConfig
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.piped import PipedModel
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.step import Compute


@dataclass(frozen=True)
class Spreading:
    """How one training is spread."""

    mesh: Mesh | None
    """None: one process."""
    compute: Compute
    """What forward and backward run on."""
    holder: Transformer
    """The model whose router biases move."""
    weights: Weights
    """What the saved state holds of the model."""
    optimizer: HybridOptimizer
    """Of what this rank updates."""
    sharding: Sharding | None
    """Between ranks; None: one process."""
    saver: Saver | None
    """Writes the states of several ranks."""

    @contextmanager
    def one_looks(self) -> Iterator[bool]:
        """Give the plain model whole weights; True on the rank that may look, others wait."""
        parted = self.compute if isinstance(self.compute, FullyShardedModel | PipedModel) else None
        if parted is not None:
            parted.materialise()
        yield self.mesh is None or self.mesh.is_first
        if self.mesh is not None:
            self.mesh.wait()
        if parted is not None:
            parted.release()

    def step_done(self, step: int) -> None:
        """Remember the place for the report of a failure; name a state that has been written."""
        if self.mesh is not None and self.saver is not None:
            self.mesh.place = f"{self.mesh.place.partition(', after')[0]}, after step {step}"
            self.saver.poll()

    def end(self) -> None:
        """Finish saving and leave the plain model with whole weights."""
        if self.saver is not None:
            self.saver.finish()
        if isinstance(self.compute, FullyShardedModel | PipedModel):
            self.compute.materialise()
        if isinstance(self.sharding, Zero | PipedModel):
            self.sharding.close()


def spread(
    model: Transformer,
    optimizer: HybridOptimizer,
    config: GradientConfig,
    ranks: Ranks,
    staged: StagedLanguageLoss | None = None,
) -> Spreading:
    """Spread the training of `model` over `ranks`; `optimizer` has not stepped yet.

    `staged` is the objective taken apart, which a pipeline needs.

    Raises:
        ConfigError: weights in shards and another compute dtype than theirs; a model that cannot be
            cut into the stages of a pipeline.
    """
    dtype = getattr(torch, config.compute_dtype)
    if not isinstance(ranks, Mesh) or ranks.size == 1:
        compute = ComputeModel(model, dtype, recompute=config.recompute)
        return Spreading(None, compute, model, model, optimizer, None, None)
    saver = Saver(ranks)
    if ranks.config.pp > 1:
        assert staged is not None, "a pipeline needs an objective in stages"
        piped = PipedModel(model, ranks, staged, dtype, recompute=config.recompute)
        return Spreading(ranks, piped, model, piped, optimizer.sharded(piped), piped, saver)
    if ranks.config.zero_stage == 3:
        sharded = FullyShardedModel(model, ranks, dtype, recompute=config.recompute)
        own = optimizer.sharded(sharded)
        return Spreading(ranks, sharded, sharded.model, sharded.model, own, sharded, saver)
    compute = ComputeModel(model, dtype, recompute=config.recompute)
    computed = dict(compute.model.named_parameters())
    zero = Zero(dict(model.named_parameters()), computed, ranks)
    return Spreading(ranks, compute, model, model, optimizer.sharded(zero), zero, saver)
