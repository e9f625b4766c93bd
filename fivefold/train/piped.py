"""A model in pipeline stages, between the training step, its weights and its data ranks.

A rank holds the weights of its own stages; `parallel.pipeline` runs them, `parallel.zero` shares
each stage's gradients and optimizer state among the data ranks. A matrix never spans stages, so
that the optimizer sees a smaller model and nothing else. Routers' biases are everywhere, for they
are small and move by counts that are summed over all ranks.

Surprises: the plain model that was given is emptied of the other stages' weights and made whole by
`materialise`, on all ranks. A weight gradient that was put off is added to its weight without a
hook of autograd, so that stages 2 and 3 of ZeRO do not see it; the config refuses them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fivefold.data.loader import Rows
from fivefold.errors import ConfigError
from fivefold.models.transformer import Transformer
from fivefold.parallel.collectives import broadcast
from fivefold.parallel.config import DATA_AXES, ParallelConfig
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.pipeline.deferred import defer_weight_gradients, finish_at_once
from fivefold.parallel.pipeline.runtime import PipelineRuntime
from fivefold.parallel.pipeline.shared import SharedParameters, embedding_ranks
from fivefold.parallel.pipeline.split import (
    StagePart,
    cut_by_counts,
    cut_by_work,
    piece_work,
    stage_parts,
)
from fivefold.parallel.pipeline.stage import ModelStage
from fivefold.parallel.pipeline.weight_store import WeightGradientStore
from fivefold.parallel.zero import Zero, global_norm
from fivefold.plan.make_schedule import make_schedule, placement_of
from fivefold.train.balance import BalanceTracker
from fivefold.train.compute import ComputeModel
from fivefold.train.staged_loss import StagedLanguageLoss

_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class _WideGradients:
    """Adds what each piece of a backward pass left to the gradients of the fp32 weights."""

    compute: ComputeModel

    def acquire(self, stage: int) -> None:
        """Take what the piece before left."""
        self.compute.collect()

    def release(self, stage: int) -> None:
        """Take what the last piece left."""
        self.compute.collect()


class PipedModel:
    """One rank's stages; a `parallel.zero.Sharding` of their weights too."""

    takes_uneven_rows = True

    def __init__(
        self,
        model: Transformer,
        mesh: Mesh,
        loss: StagedLanguageLoss,
        dtype: torch.dtype,
        *,
        recompute: bool = False,
    ) -> None:
        """Cut `model`, which every rank has whole, and empty it of what others hold.

        Raises:
            ConfigError: the model cannot be cut into that many stages, or not there.
        """
        config = mesh.config
        self._mesh, self._config, self._loss, self._shell = mesh, config, loss, model
        self._group = mesh.group("pp")
        self.everyone = mesh.group("pp", *DATA_AXES)
        """The ranks that share the step's rows or layers: metrics and counts are sums over them."""
        self._placement = placement_of(config.schedule, config.pp, config.chunks)
        parts = make_parts(model, config, len(self._placement))
        self._homes = self._find_homes(parts)
        self._whole_shapes = {name: value.shape for name, value in model.named_parameters()}
        self.release()
        self._compute = ComputeModel(model, dtype, recompute=recompute)
        self.model = self._compute.model
        local = [s for s, home in enumerate(self._placement) if home == self._group.rank]
        self.stages = {
            s: ModelStage(self.model, parts[s], loss, indexer=loss.indexer) for s in local
        }
        self._stores = {s: WeightGradientStore(config.deferred_bytes) for s in local}
        for s, stage in self.stages.items():
            defer_weight_gradients(stage, self._stores[s])
        self._runtimes: dict[int, PipelineRuntime] = {}
        named = model.named_parameters()
        weights = {name: value for name, value in named if self._is_here(name)}
        self._zero = Zero(weights, weights, mesh)
        self.rows, self.shapes = self._zero.rows, self._zero.shapes
        self.data_group, self.shard_group = self._zero.data_group, self._zero.shard_group
        self._norm_group = self.everyone if self.shard_group.size > 1 else self._group
        self._shared: SharedParameters | None = None
        holders = embedding_ranks(parts, self._placement)
        if len(holders) > 1 and self._group.rank in holders:
            embedding = {_EMBEDDING: model.get_parameter(_EMBEDDING)}
            self._shared = SharedParameters(embedding, holders, self._group)

    def run(
        self, parts: Sequence[Rows], whole: Rows, tokens_before: int, balance: BalanceTracker
    ) -> dict[str, Tensor]:
        """Run forward and backward of this data rank's microbatches; return shares of metrics.

        Gradients are left on the weights.
        """
        device = self._mesh.world.device
        self._loss.begin(whole, tokens_before, balance)
        if parts:
            self._runtime(len(parts)).step(self._loss.batches(parts, device))
        self._compute.collect()
        if self._shared is not None:
            self._shared.add_gradients()
        return self._loss.measured(device)

    def refresh(self) -> None:
        """Take over the weights, and what a phase changed in the model: its rotary speeds."""
        self._compute.refresh()
        for stage in self.stages.values():
            stage.speeds_R = self.model.speeds_R

    def collect(self) -> None:
        """Do nothing: `run` leaves gradients where `finish` looks for them."""

    def finish(self) -> None:
        """Put the gradients of the step, summed over the data ranks, on `rows`."""
        self._zero.finish()

    def restore(self) -> None:
        """After an update of `rows`: make the weights of the stages whole again."""
        self._zero.restore()
        # An all-reduce of many ranks adds in an order that depends on the layout of the buffer.
        if self._shared is not None and self.shard_group.size == 1 and self.data_group.size > 1:
            self._shared.copy_from_owner()

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows as the whole parameter's, for a checkpoint."""
        return self._zero.as_global(name, local)

    def norm(self, local: float | None) -> float | None:
        """Return the norm of what all ranks count; None where nobody has anything."""
        return global_norm(local, self._norm_group, self._mesh.world.device)

    @property
    def uncounted(self) -> set[nn.Parameter]:
        """The rows that another pipeline rank counts in norms."""
        if self._shared is None or self._shared.is_owner or _EMBEDDING not in self.rows:
            return set()
        return {self.rows[_EMBEDDING]}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights of this rank's stages and all buffers, by the model's names."""
        state = self._shell.state_dict()
        return {n: t for n, t in state.items() if n not in self._homes or self._is_here(n)}

    @torch.no_grad()
    def materialise(self) -> None:
        """Fill the plain model with the whole weights; all ranks together."""
        for name, parameter in self._shell.named_parameters():
            if not self._is_here(name):
                parameter.data = parameter.data.new_empty(self._whole_shapes[name])
            broadcast(parameter.data, self._group, self._homes[name][0])

    def release(self) -> None:
        """Empty the plain model of the other stages' weights again."""
        for name, parameter in self._shell.named_parameters():
            if not self._is_here(name):
                parameter.data = parameter.data.new_empty(0)

    def close(self) -> None:
        """Let the model's products make their weight gradients themselves again."""
        for stage in self.stages.values():
            finish_at_once(stage)
        self._zero.close()

    def _is_here(self, name: str) -> bool:
        return self._group.rank in self._homes[name]

    def _find_homes(self, parts: Sequence[StagePart]) -> dict[str, list[int]]:
        """Return the pipeline ranks that hold each parameter, its owner first."""
        homes: dict[str, list[int]] = {}
        for part, rank in zip(parts, self._placement, strict=True):
            for name, _ in ModelStage(self._shell, part, self._loss).named_parameters():
                ranks = homes.setdefault(name, [])
                ranks += [] if rank in ranks else [rank]
        return homes

    def _runtime(self, microbatches: int) -> PipelineRuntime:
        """Return the runtime for so many microbatches, which a growing batch changes."""
        if microbatches not in self._runtimes:
            config = self._config
            schedule = make_schedule(config.schedule, config.pp, microbatches, chunks=config.chunks)
            self._runtimes[microbatches] = PipelineRuntime(
                schedule,
                self.stages,
                group=self._group,
                device=self._mesh.world.device,
                stores=self._stores,
                keeper=_WideGradients(self._compute),
                carries_gradient=self._loss.indexer != "warm_up",
            )
        return self._runtimes[microbatches]


def make_parts(model: Transformer, config: ParallelConfig, stages: int) -> list[StagePart]:
    """Cut the model into stages: by the counts of the config, or into equal work.

    Raises:
        ConfigError: the counts do not fit, or there are more stages than pieces.
    """
    if config.pieces is not None:
        if len(config.pieces) != stages:
            raise ConfigError(
                expected=f"`pieces` for {stages} stages",
                found=str(list(config.pieces)),
                fix="Give one number a stage, or leave `pieces` out",
            )
        return stage_parts(model.config, cut_by_counts(model.config, config.pieces))
    work = piece_work(model.config, model.config.max_position_embeddings)
    return stage_parts(model.config, cut_by_work(model.config, work, stages, config.mtp_stage))
