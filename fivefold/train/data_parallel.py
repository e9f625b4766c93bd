"""Spreading a training over ranks: who holds, computes, updates, saves and looks.

One process takes part as a mesh of one: its model holds the weights, a `ComputeModel` runs them,
nothing is shared. Otherwise `parallel.zero`, for a model in parts `parallel.tensor_rows` (heads,
columns and experts on different ranks, `parallel.tensor`, weights in shards, `parallel.fsdp`), or
for a pipeline `train.piped` stands between model and optimizer; `parallel.context` shares the
tokens of rows besides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fivefold.models.transformer import Transformer
from fivefold.parallel.context.across import ContextParallel
from fivefold.parallel.fsdp import shard_weights
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.saver import Saver
from fivefold.parallel.tensor import SplitModel
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.parallel.zero import Sharding, Zero
from fivefold.stage import Ranks
from fivefold.train.checkpoint import Weights, load_state
from fivefold.train.compute import ComputeModel, exact_parameters
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
    parted: PipedModel | SplitModel | None = None
    """What holds the weights in parts, the plain model emptied; None: each rank has all."""
    context: ContextParallel | None = None
    """How ranks share the tokens of rows; None: they do not, or a pipeline sees to it."""

    def load(self, states: Path) -> dict[str, Any] | None:
        """Go on from the newest state in `states`: return its progress; None if there is none.

        Raises:
            CorruptFileError: the newest state is damaged.
        """
        saved = load_state(states, self.weights, self.optimizer, self.mesh)
        if saved is not None and isinstance(self.sharding, SplitRows | PipedModel):
            self.sharding.take_over()
        return saved

    @contextmanager
    def one_looks(self) -> Iterator[bool]:
        """Give the plain model whole weights; True on the rank that may look, others wait."""
        if self.parted is not None:
            self.parted.materialise()
        yield self.mesh is None or self.mesh.is_first
        if self.mesh is not None:
            self.mesh.wait()
        if self.parted is not None:
            self.parted.release()

    def step_done(self, step: int) -> None:
        """Remember the place for the report of a failure; notice a save that has failed."""
        if self.mesh is not None and self.saver is not None:
            self.mesh.place = f"{self.mesh.place.partition(', after')[0]}, after step {step}"
            self.saver.poll()

    def end(self) -> None:
        """Finish saving and leave the plain model to be looked at or trained anew.

        Whole on the first rank; on the others with what they hold, to be taken by a next training.
        """
        if self.saver is not None:
            self.saver.finish()
        if self.parted is not None:
            self.parted.materialise()
            self.parted.close()
        if isinstance(self.sharding, Zero | SplitRows):
            self.sharding.close()


class SplitCompute(ComputeModel):
    """What a model in parts runs on: it follows the changes that phases make in the plain one."""

    def __init__(self, split: SplitModel, dtype: torch.dtype, **choices: Any) -> None:
        """Run the model of `split`; `choices` are those of a `ComputeModel`."""
        super().__init__(split.model, dtype, **choices)
        self._split = split

    def refresh(self) -> None:
        """Take over the weights and buffers as they are now."""
        self._split.follow()
        super().refresh()


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
        ConfigError: a model that cannot be cut into so many stages of a pipeline, or heads, columns
            or experts into so many parts; a layer to treat that the model does not have.
    """
    dtype = getattr(torch, config.compute_dtype)
    if not isinstance(ranks, Mesh) or ranks.size == 1:
        compute = _compute_all(model, config)
        return Spreading(None, compute, model, model, optimizer, None, None)
    saver = Saver(ranks)
    if ranks.config.pp > 1:
        assert staged is not None, "a pipeline needs an objective in stages"
        piped = PipedModel(model, ranks, staged, dtype, **_treatment(config))
        own = optimizer.sharded(piped)
        return Spreading(ranks, piped, piped.holder, piped, own, piped, saver, piped)
    split = SplitModel(model, ranks)
    if split.is_cut:
        is_sharded = ranks.config.zero_stage == 3
        if is_sharded:
            shard_weights(split, dtype, exact_parameters(split.model))
        treatment = _treatment(config)
        compute = SplitCompute(split, dtype, casts=is_sharded, mesh=ranks, **treatment)
        computed = dict(compute.model.named_parameters())
        holder, sharding = split.model, SplitRows(split, computed)
    else:
        split, holder, compute = None, model, _compute_all(model, config, ranks)
        computed = dict(compute.model.named_parameters())
        sharding = Zero(dict(model.named_parameters()), computed, ranks)
    own = optimizer.sharded(sharding)
    context = ContextParallel(ranks, compute.model) if ranks.config.cp > 1 else None
    return Spreading(ranks, compute, holder, holder, own, sharding, saver, split, context)


def _compute_all(
    model: Transformer, config: GradientConfig, mesh: Mesh | None = None
) -> ComputeModel:
    """Return what runs all layers of a model whose weights are whole."""
    dtype = getattr(torch, config.compute_dtype)
    return ComputeModel(model, dtype, mesh=mesh, **_treatment(config))


def _treatment(config: GradientConfig) -> dict[str, Any]:
    """Return what becomes of activations, as a `ComputeModel` takes it."""
    fields = ("recompute", "offload", "activation_bytes")
    return {field: getattr(config, field) for field in fields}
