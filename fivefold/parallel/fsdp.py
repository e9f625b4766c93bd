"""ZeRO stage 3: weights sharded too, by torch's FSDP2, which gathers a block when it is needed.

What a rank holds of the model after `parallel.tensor` has cut it is shared among the ranks along
`fsdp`. Blocks, the MTP layer and the embedding are one unit each; final norm and head form the
root's, which stays whole from the forward to the end of the backward, for the losses use the head
outside the forward. In a pipeline each stage is a root. Gradients are summed over `fsdp` after each
backward, and not averaged; `parallel.tensor_rows` adds up the other axes at the end of the step.

Experts fold over `fsdp` too: theirs are shared among those ranks along it that hold the same ones,
which may be a single one. Where forward and backward run in a lower precision FSDP2 casts what it
gathers and reduces in the weights' dtype; what has to stay exact there, embedding aside, stays
whole: routers and index heads are small, and a unit has one dtype.

Surprise: FSDP2 turns parameters into DTensors in place, and puts whole ones there while a unit
runs. A reference to a parameter is taken after the sharding, and never in between.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor

from fivefold.models.mtp import MtpLayer
from fivefold.models.transformer import Block
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.tensor import SplitModel

_EXPERTS = "efsdp"
"""The ranks along `fsdp` that hold the same experts."""


def shard_weights(
    split: SplitModel,
    dtype: torch.dtype,
    exact: Collection[nn.Parameter] = (),
    stages: Sequence[nn.Module] | None = None,
) -> None:
    """Share what this rank holds of the model's weights among the ranks along `fsdp`.

    `dtype` is that of forward and backward, except for the parameters `exact`. `stages` are the
    modules of this rank's stages of a pipeline; None: the model is run as a whole. The weights
    stand on the meta device until they are sharded.
    """
    model, mesh = split.model, split.mesh
    # All ranks ask in the same order, whatever their layers.
    groups = mesh.group("fsdp"), mesh.group(_EXPERTS)
    embedding = model.embed_tokens
    policy, whole = MixedPrecisionPolicy(), set[nn.Parameter]()
    if dtype != embedding.weight.dtype:
        reduced = embedding.weight.dtype
        policy = MixedPrecisionPolicy(dtype, reduce_dtype=reduced, cast_forward_inputs=False)
        whole = {parameter for parameter in exact if parameter is not embedding.weight}
    apart = [name for name in split.shapes if ".experts." in name]
    experts = None
    if apart and mesh.config.expert_shards < mesh.config.fsdp:
        experts = FSDPMeshInfo(_expert_devices(mesh), shard_mesh_dim=0)
    placed = {model.get_parameter(name) for name in apart} if experts is not None else set()
    sharder = _Sharder(mesh.device_mesh("fsdp"), whole, experts, placed)
    # Views come from what tensor ranks exchange; nobody changes what a unit returns.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    if "embed_tokens.weight" in split.shapes:
        unit = sharder.shard(embedding, MixedPrecisionPolicy(), True)
        # Lookups need no weight in the backward.
        unit.set_unshard_in_backward(False)
        split.units.append(unit)
    roots = [model] if stages is None else stages
    for later in roots[1:]:
        # A module has one root: of stages that read the embedding the first, or itself.
        for name, child in list(later.named_children()):
            if child is embedding:
                delattr(later, name)
    for root in roots:
        split.units += [sharder.shard(unit, policy) for unit in [*_units(root), root]]
    for name in split.shapes:
        if isinstance(model.get_parameter(name), DTensor):
            split.shards[name] = groups[".experts." in name]
    split.fill()


@dataclass(frozen=True)
class _Sharder:
    """Who shares the weights of one model."""

    devices: DeviceMesh
    """The ranks along `fsdp`."""
    whole: set[nn.Parameter]
    """What nobody shares."""
    few: FSDPMeshInfo | None
    """Other ranks, for some parameters; None: there are none."""
    placed: set[nn.Parameter]
    """Those parameters."""

    def shard(
        self, unit: nn.Module, policy: MixedPrecisionPolicy, again: bool | None = None
    ) -> FSDPModule:
        """Make a unit of what is no other's below a module.

        `again`: gather it anew in the backward; None: if it is no root.
        """
        sharded = fully_shard(
            unit,
            mesh=self.devices,
            reshard_after_forward=again,
            shard_placement_fn=None if self.few is None else self._place,
            mp_policy=policy,
            ignored_params=self.whole or None,
        )
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        return sharded

    def _place(self, parameter: nn.Parameter) -> ShardPlacementResult | None:
        if self.few is None or parameter not in self.placed:
            return None
        return ShardPlacementResult(None, self.few)


def _units(root: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks and MTP layers below a module, a layer's own block being part of it."""
    for child in root.children():
        if isinstance(child, Block | MtpLayer):
            yield child
        else:
            yield from _units(child)


def _expert_devices(mesh: Mesh) -> DeviceMesh:
    """Return torch's mesh of the ranks that share the same experts."""
    group = mesh.group(_EXPERTS)
    if group.handle is not None:
        return mesh.flat_device_mesh(group)
    alone = dist.new_group([mesh.rank], use_local_synchronization=True)
    assert isinstance(alone, dist.ProcessGroup)
    return DeviceMesh.from_group(alone, mesh.world.device.type, mesh_dim_names=(group.name,))
