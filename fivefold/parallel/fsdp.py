"""ZeRO stage 3: weights sharded too, by torch's FSDP2, which gathers a block when it is needed.

Blocks and the MTP layer are one unit each; embedding, final norm and head form the root's, which
stays whole from the forward to the end of the backward, for the losses use the head outside the
forward. Gradients are summed, not averaged, as at the other stages.

Surprise: the plain model that was given is emptied and lives on as a shell. Whatever wants to see
whole weights (validation, samples, the export) asks `materialise` first and `release` afterwards,
on all ranks.
"""

import copy

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fivefold.errors import ConfigError
from fivefold.models.transformer import Transformer
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.offload import Layers, blocks_by_layer, named_layers
from fivefold.parallel.row_shard import RowShard
from fivefold.parallel.zero import as_global


class FullyShardedModel:
    """The model to run, and the rows of its weights that this rank updates."""

    takes_uneven_rows = False

    def __init__(
        self, model: Transformer, mesh: Mesh, dtype: torch.dtype, *, recompute: Layers = False
    ) -> None:
        """Shard a copy of `model` over the mesh's `fsdp` axis and empty `model`.

        Raises:
            ConfigError: another compute dtype than the weights', or a layer that does not exist.
        """
        if dtype != model.lm_head.weight.dtype:
            raise ConfigError(
                expected="`compute_dtype` float32 with `parallel.fsdp`",
                found=str(dtype).removeprefix("torch."),
                fix="Set it to float32, or use `parallel.dp` with `parallel.zero=2`",
            )
        self._shell = model
        self._mesh = mesh
        self.data_group = self.everyone = mesh.data
        self.shard_group = mesh.group("fsdp")
        self.model = copy.deepcopy(model)
        axes = ("dp", "fsdp") if mesh.config.dp > 1 else ("fsdp",)
        devices = mesh.device_mesh(*axes)
        units: list[nn.Module] = [*self.model.layers]
        if self.model.mtp is not None:
            units.append(self.model.mtp)
        for unit in [*units, self.model]:
            sharded = fully_shard(unit, mesh=devices)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        blocks = blocks_by_layer(self.model)
        again = named_layers(recompute, blocks)
        for layer, block in blocks.items():
            block.recompute = layer in again
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._weights = {name: _sharded(parameter) for name, parameter in trained.items()}
        self._parameters = trained
        self.shapes = {name: tuple(value.shape) for name, value in trained.items()}
        self.rows = {n: nn.Parameter(w.to_local().detach()) for n, w in self._weights.items()}
        self._shards = {
            name: RowShard(shape, self.shard_group.size, self.shard_group.rank)
            for name, shape in self.shapes.items()
        }
        self.release()

    def refresh(self) -> None:
        """Take over what a phase changed in the model: its rotary speeds."""
        saved = self.model.state_dict().keys()
        for name, buffer in self._shell.named_buffers():
            if name not in saved:
                self.model.get_buffer(name).copy_(buffer)

    def collect(self) -> None:
        """Do nothing: FSDP2 has reduced the gradients of the backward already."""

    def finish(self) -> None:
        """Put the gradients of the step on `rows`."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            self.rows[name].grad = None if gradient is None else _sharded(gradient).to_local()
            parameter.grad = None

    def restore(self) -> None:
        """Do nothing: each forward gathers the weights as they are."""

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows as the whole parameter's, for a checkpoint."""
        return as_global(local, self._shards[name], self._mesh, self.shard_group)

    @torch.no_grad()
    def materialise(self) -> None:
        """Fill the plain model with the whole weights; all ranks together."""
        for name, parameter in self.model.named_parameters():
            self._shell.get_parameter(name).data = _sharded(parameter).full_tensor()
        saved = self.model.state_dict().keys()
        for name, buffer in self.model.named_buffers():
            if name in saved:
                self._shell.get_buffer(name).copy_(buffer)

    def release(self) -> None:
        """Empty the plain model again."""
        for parameter in self._shell.parameters():
            parameter.data = parameter.data.new_empty(0)


def _sharded(tensor: Tensor) -> DTensor:
    assert isinstance(tensor, DTensor), "FSDP2 gives sharded tensors"
    return tensor
