"""A model in pipeline stages, between the training step, its weights and its data ranks.

A rank holds the weights of its own stages; `parallel.pipeline` runs them, `parallel.zero` shares
each stage's gradients and optimizer state among the data ranks; at stage 2 of ZeRO gradients pass
through two rolling buffers (`parallel.pipeline.rolling`). A matrix never spans stages, so that the
optimizer sees a smaller model and nothing else. Routers' biases are everywhere, for they are small
and move by counts that are summed over all ranks.

The other axes stand within a stage: what a rank holds of its stages is its part of them
(`parallel.tensor.SplitModel`, `parallel.fsdp`), with `parallel.tensor_rows` in the place of
`parallel.zero`, and a microbatch is this rank's tokens of its rows (`parallel.context`). Sharded
weights are gathered for each microbatch, and their gradients are not put off: FSDP2 reduces them
when the backward of a block ends.

Surprise: the plain model that was given, with all weights or those of this rank alone, is emptied
of what is not trained there and made whole by `materialise` on the first rank only, which looks at
it and exports it; no other rank ever holds the whole.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fivefold.data.loader import Rows
from fivefold.models.transformer import Transformer
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.config import AXES, DATA_AXES
from fivefold.parallel.context.across import ContextParallel
from fivefold.parallel.fsdp import shard_weights
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.offload import Layers
from fivefold.parallel.part import replace_parameter
from fivefold.parallel.pipeline.blank import BlankMicrobatch, SparingObjective, blank_of
from fivefold.parallel.pipeline.deferred import defer_weight_gradients, finish_at_once
from fivefold.parallel.pipeline.message import send
from fivefold.parallel.pipeline.placement import place_stages
from fivefold.parallel.pipeline.rolling_zero import RollingZero
from fivefold.parallel.pipeline.runtime import PipelineRuntime
from fivefold.parallel.pipeline.shared import SharedParameters
from fivefold.parallel.pipeline.stage import ModelStage
from fivefold.parallel.pipeline.weight_store import WeightGradientStore
from fivefold.parallel.tensor import SplitModel
from fivefold.parallel.tensor_rows import SplitRows
from fivefold.parallel.zero import Zero, global_norm
from fivefold.plan.make_schedule import make_schedule
from fivefold.train.balance import BalanceTracker
from fivefold.train.compute import ComputeModel, exact_parameters
from fivefold.train.staged_loss import StagedBatch, StagedLanguageLoss

logger = logging.getLogger(__name__)

_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class _WideGradients:
    """Adds what each piece of a backward pass left to the gradients of the fp32 weights."""

    compute: ComputeModel
    rolling: RollingZero | SplitRows | None
    """Owner of those gradients; None: they stay in `grad`."""

    def acquire(self, stage: int) -> None:
        """Take what the piece before left: it was the same stage's, or a run has ended since."""
        self.compute.collect()
        if self.rolling is not None:
            self.rolling.acquire(stage)

    def release(self, stage: int) -> None:
        """Take what the last piece left."""
        self.compute.collect()
        if self.rolling is not None:
            self.rolling.release(stage)


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
        recompute: Layers = False,
        offload: Layers = False,
        activation_bytes: int | None = None,
    ) -> None:
        """Take this rank's stages of `model` and empty it of what others hold.

        What others hold may stand on the meta device already (`parallel.build`).
        `recompute`, `offload` and `activation_bytes` are those of a `ComputeModel`.

        Raises:
            ConfigError: the model cannot be cut into that many stages, or not there, or into so
                many heads, columns or experts, or it has no such layer.
        """
        config = mesh.config
        self._mesh, self._config, self._loss, self._shell = mesh, config, loss, model
        self._group = mesh.group("pp")
        self.everyone = mesh.group("pp", *DATA_AXES, "cp")
        """The ranks that share the step's rows, tokens or layers: metrics and counts add up."""
        self._placement = place_stages(model.config, config)
        self._whole_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._homes = {name: self._placement.homes(name) for name in self._whole_shapes}
        here = {n: shape for n, shape in self._whole_shapes.items() if self._is_here(n)}
        self._split = SplitModel(model, mesh, here)
        self._drop_others()
        is_sharded = config.zero_stage == 3
        self._compute = ComputeModel(
            self.holder,
            dtype,
            recompute=recompute,
            offload=offload,
            activation_bytes=activation_bytes,
            casts=is_sharded,
            mesh=mesh,
        )
        self.model = self._compute.model
        self._context = ContextParallel(mesh, self.model) if config.cp > 1 else None
        objective, axis = SparingObjective(loss), self._split.axis
        self.stages = {
            s: ModelStage(self.model, self._placement.parts[s], objective, axis, dtype)
            for s in self._placement.stages_of(self._group.rank)
        }
        if is_sharded:
            exact = exact_parameters(self.model)
            shard_weights(self._split, dtype, exact, list(self.stages.values()))
        # The warm-up of indexers runs the MTP layer once.
        self._layers = {
            s: [*stage.part.layers]
            + [model.config.num_hidden_layers] * min(stage.part.mtp_depths, loss.depths)
            for s, stage in self.stages.items()
        }
        self._defers = not is_sharded
        if is_sharded and mesh.is_first and config.schedule not in ("1f1b", "interleaved"):
            logger.warning(
                "with `parallel.fsdp` weight gradients are not put off: `%s` runs in its order and "
                "fills no bubble with them",
                config.schedule,
            )
        offloader = self._compute.offloader
        held = None if offloader is None else offloader.ledger
        self._stores = {s: WeightGradientStore(config.deferred_bytes, held) for s in self.stages}
        if self._defers:
            for s, stage in self.stages.items():
                defer_weight_gradients(stage, self._stores[s])
        self._runtimes: dict[int, PipelineRuntime] = {}
        self.rolling: RollingZero | None = None
        """Stage 2 of ZeRO; None at other stages, and where a rank shares rows with no other."""
        self._zero = self._share()
        self.rows, self.shapes = self._zero.rows, self._zero.shapes
        self.data_group, self.shard_group = self._zero.data_group, self._zero.shard_group
        self._norm_group = mesh.group(*AXES) if self.shard_group.size > 1 else self._group
        # Ranks that reduce or exchange within a microbatch need as many as each other.
        self._keeps_step = self._owner is not None or config.keeps_step
        self._shared: SharedParameters | None = None
        holders = self._homes[_EMBEDDING]
        if len(holders) > 1 and self._group.rank in holders:
            parts = self._zero.parts if isinstance(self._zero, SplitRows) else {}
            own = parts.get(_EMBEDDING, self.holder.get_parameter(_EMBEDDING))
            embedding = {_EMBEDDING: own}
            self._shared = SharedParameters(embedding, holders, self._group)
        # NCCL wants all ranks in a group's first collective; later only neighbours and holders of
        # the embedding exchange.
        all_reduce(torch.zeros(1, device=mesh.world.device), self._group)

    @property
    def holder(self) -> Transformer:
        """The model of the weights that are updated and of the biases that move."""
        return self._split.model

    @property
    def _owner(self) -> RollingZero | SplitRows | None:
        """Who takes gradients at the end of every run of a stage's backwards; None: nobody."""
        if self._config.zero_stage == 2 and isinstance(self._zero, SplitRows):
            return self._zero
        return self.rolling

    def _share(self) -> Zero | RollingZero | SplitRows:
        """Share the weights of this rank's stages among the ranks that run them."""
        named = self.holder.named_parameters()
        weights = {name: value for name, value in named if self._is_here(name)}
        apart = self._placement.several(weights)
        alone = {
            s: {n: weights[n] for n, _ in stage.named_parameters() if n not in apart}
            for s, stage in self.stages.items()
        }
        if self._split.is_cut:
            return SplitRows(self._split, stages=alone)
        if self._config.zero_stage < 2 or self._mesh.everyone.size == 1:
            return Zero(weights, weights, self._mesh)
        self.rolling = RollingZero(alone, {name: weights[name] for name in apart}, self._mesh)
        if self._mesh.is_first and not self.rolling.saves_memory:
            logger.warning(
                "`parallel.zero=2` saves no memory with %d pipeline stages a rank and %d ranks "
                "along dp and cp: two full gradients stand beside the shards; `zero=1` sends less",
                len(self.stages),
                self._mesh.everyone.size,
            )
        return self.rolling

    def run(
        self, parts: Sequence[Rows], whole: Rows, tokens_before: int, balance: BalanceTracker
    ) -> dict[str, Tensor]:
        """Run forward and backward of this data rank's microbatches; return shares of metrics.

        Gradients are left on the weights, or with the rolling buffers.
        """
        device = self._mesh.world.device
        self._loss.begin(whole, tokens_before, balance)
        batches: list[StagedBatch | BlankMicrobatch] = [*self._batches(parts)]
        if self.rolling is not None:
            self.rolling.begin()
        if self._keeps_step:
            batches += self._blanks(len(batches), whole)
        if batches:
            runtime = self._runtime(len(batches))
            row = runtime.schedule.actions[self._group.rank]
            self._compute.treatment.follow(row, self._layers, batches, defers=self._defers)
            runtime.step(batches)
        self._compute.collect()
        if isinstance(self._zero, SplitRows):
            self._zero.take_shards()
        if self._shared is not None:
            self._shared.add_gradients()
        return self._loss.measured(device)

    def _batches(self, parts: Sequence[Rows]) -> list[StagedBatch]:
        batches = self._loss.batches(parts, self.model, self._context)
        for batch in batches:
            self._split.axis.check(batch.ids_BT)
        return batches

    def _blanks(self, count: int, whole: Rows) -> list[BlankMicrobatch]:
        """Return what this data rank lacks to the most microbatches of any."""
        device = self._mesh.world.device
        most = all_reduce(torch.tensor([count], device=device), self.data_group, "max")
        lacking = int(most) - count
        if not lacking:
            return []
        (batch,) = self._batches([whole.part(slice(0, 1))])
        return [blank_of(batch)] * lacking

    def refresh(self) -> None:
        """Take over the weights, and what a phase changed in the model: its rotary speeds."""
        self._split.follow()
        self._compute.refresh()

    def collect(self) -> None:
        """Do nothing: `run` leaves gradients where `finish` looks for them."""

    def take_over(self) -> None:
        """Take the rows from the weights, which a saved state may just have filled."""
        if isinstance(self._zero, SplitRows):
            self._zero.take_over()

    def finish(self) -> None:
        """Put the gradients of the step, summed over the ranks of a stage, on `rows`."""
        self._zero.finish()

    def restore(self) -> None:
        """After an update of `rows`: make the weights of the stages whole again."""
        self._zero.restore()
        # An all-reduce of many ranks adds in an order that depends on the layout of the buffer.
        is_summed_whole = self.shard_group.size == 1 and self._zero.everyone.size > 1
        if self._shared is not None and is_summed_whole:
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
        state = self.holder.state_dict()
        return {n: t for n, t in state.items() if n not in self._homes or self._is_here(n)}

    @torch.no_grad()
    def materialise(self) -> None:
        """Fill the plain model of the first rank with the whole weights; all ranks together.

        Another rank sends what it holds of a parameter before it looks for the next.
        """
        is_apart = self._split.is_cut
        for name, homes in self._homes.items():
            owner = 0 if 0 in homes else homes[0]
            whole = self._split.gather(name) if self._group.rank == owner else None
            if owner and whole is not None:
                send(whole.contiguous(), 0, self._group).wait()
            elif owner and self._mesh.is_first:
                like = self._shell.get_parameter(name)
                device = self._mesh.world.device
                whole = torch.empty(self._whole_shapes[name], dtype=like.dtype, device=device)
                dist.recv(whole, self._group.ranks[owner], self._group.handle)
            if self._mesh.is_first and (owner or is_apart):
                assert whole is not None, "the first rank is the first of its stage"
                replace_parameter(self._shell, name, whole)
        self._split.copy_buffers()

    def release(self) -> None:
        """Empty the plain model again of what this rank does not train there."""
        self._split.release()
        self._drop_others()

    def _drop_others(self) -> None:
        """Empty the plain model of the other stages' weights, where it is what a rank trains."""
        if self._split.is_cut:
            return
        for name, parameter in list(self._shell.named_parameters()):
            if not self._is_here(name):
                device = self._mesh.world.device
                nothing = torch.empty(0, dtype=parameter.dtype, device=device)
                replace_parameter(self._shell, name, nothing)
                if not parameter.is_meta:
                    parameter.data = nothing

    def close(self) -> None:
        """Let the plain model be trained anew: whole on the first rank, in part on the others.

        What a rank does not hold goes to the meta device. The model's products make their weight
        gradients themselves again.
        """
        for stage in self.stages.values():
            finish_at_once(stage)
        self._split.close()
        for name, parameter in list(self._shell.named_parameters()):
            if parameter.shape != self._whole_shapes[name]:
                shape = self._whole_shapes[name]
                unmade = torch.empty(shape, dtype=parameter.dtype, device="meta")
                replace_parameter(self._shell, name, unmade)

    def _is_here(self, name: str) -> bool:
        return self._group.rank in self._homes[name]

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
                keeper=_WideGradients(self._compute, self._owner),
                carries_gradient=self._loss.indexer != "warm_up",
            )
        return self._runtimes[microbatches]
