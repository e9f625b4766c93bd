"""One rank's part of a model: heads, feed-forward columns, vocabulary and experts are shared.

Applied from outside to the plain model, whose parameters are cut (`part`): what comes in pairs of
matrices, the first by rows (outputs), the second by columns (inputs). `tensor_exchange` puts the
exchanges of `sequence` around its modules. What is not cut is replicated; its gradient on a rank is
that of the rank's tokens or heads, and the sum over ranks is the whole. Sources: Shoeybi et al.
2019 (Megatron-LM), section 3; Korthikanti et al. 2022.

Experts are not cut by tensor ranks: these are ranks of `ep` like others, each with its part of the
sequence. Between ranks of `tp` alone (`ep=1`) they are replicated.

A forward takes whole rows and gives whole hidden states; in between, embeddings and states are
(B, T / tp, D). The head's loss is `head_loss`, from this rank's rows of it.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.models.moe import MoE
from fivefold.models.transformer import Transformer
from fivefold.parallel.config import AXES, ParallelConfig, rank_table
from fivefold.parallel.expert import ExpertDispatcher
from fivefold.parallel.expert_exchange import delivery
from fivefold.parallel.mesh import Group, Mesh
from fivefold.parallel.part import (
    Box,
    Cut,
    HeldPart,
    box_of,
    cut_of,
    empty_parameter,
    held_box,
    is_sharded_late,
    part_of,
    put_parameter,
    replace_parameter,
    take_part,
)
from fivefold.parallel.pipeline.message import send
from fivefold.parallel.sequence import TensorAxis
from fivefold.parallel.tensor_exchange import share_tensors


def check_divides(model: ModelConfig, config: ParallelConfig) -> None:
    """Refuse ranks that cannot share heads, columns or experts evenly.

    Raises:
        ConfigError: there are such.
    """
    shared = model.moe_intermediate_size * model.n_shared_experts
    sizes = [
        ("tp", config.tp, "attention heads", model.num_attention_heads),
        ("tp", config.tp, "columns of the dense layers", model.intermediate_size),
        ("tp", config.tp, "columns of the shared expert", shared),
        ("ep", config.ep, "routed experts", model.n_routed_experts),
    ]
    for axis, ranks, what, count in sizes:
        if count % ranks:
            raise ConfigError(
                expected=f"`{axis}` to divide the model's {count} {what}",
                found=f"`{axis}={ranks}`",
                fix="Choose a divisor",
            )


class SplitModel:
    """The part of a model that a rank holds over `tp` and `ep`, for `parallel.fsdp` to shard.

    Where the mesh has neither and no weight is sharded, the model itself is its only part.
    """

    def __init__(
        self, model: Transformer, mesh: Mesh, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        """Move this rank's part out of `model`, which keeps its buffers.

        `model` is whole, or has of each parameter at least that part (`parallel.build`). `shapes`
        name the parameters of this rank, None being all: those of other stages of a pipeline are
        empty. Weights that are sharded stand on the meta device until `fill` is called.

        Raises:
            ConfigError: ranks that cannot share the model evenly.
        """
        check_divides(model.config, mesh.config)
        self.mesh = mesh
        self.shell = self.model = model
        self.axis = TensorAxis(mesh.group("tp"))
        if shapes is None:
            shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        self.shapes = shapes
        self.cuts = self.cuts_of_rank(mesh.rank)
        self.shards: dict[str, Group] = {}
        """Ranks that share this rank's part of a parameter by its rows."""
        self.units: list[FSDPModule] = []
        """What gathers such parts for a while."""
        config = mesh.config
        self.is_cut = config.tp > 1 or config.ep > 1 or config.zero_stage == 3
        if not self.is_cut:
            return
        self._stage = mesh.group(*AXES[1:])
        self._held: dict[str, Tensor] = {}
        self.model = _emptied(model)
        for name, parameter in list(model.named_parameters()):
            if name not in shapes:
                empty_parameter(model, name)
                nothing = torch.empty(0, dtype=parameter.dtype, device=model.speeds_R.device)
                replace_parameter(self.model, name, nothing)
                continue
            held = take_part(model, name, self._built_box(name))
            if config.zero_stage == 3:
                self._held[name] = held
                shape = box_of(self.cuts[name], shapes[name]).of(model.get_parameter(name)).shape
                held = torch.empty(shape, dtype=held.dtype, device="meta")
            replace_parameter(self.model, name, held)
        self.model.register_state_dict_post_hook(_presenting_whole(self))
        if self.axis.size > 1:
            share_tensors(self.model, self.axis)
        if config.ep > 1:
            way = delivery(mesh, config.ranks_per_node)
            moes = [module for module in self.model.modules() if isinstance(module, MoE)]
            for layer, moe in enumerate(moes):
                moe.dispatch = ExpertDispatcher(way, model.config.n_routed_experts, layer)

    def fill(self) -> None:
        """Put this rank's rows into the weights, which FSDP2 has sharded on the meta device."""
        boxes = self.boxes_of_rank(self.mesh.rank)
        for name in list(self._held):
            rows = part_of(self._held.pop(name), self._built_box(name), boxes[name])
            weight = self.model.get_parameter(name)
            if not isinstance(weight, DTensor):
                replace_parameter(self.model, name, rows)
                continue
            filled = DTensor.from_local(
                rows,
                weight.device_mesh,
                weight.placements,
                run_check=False,
                shape=weight.shape,
                stride=weight.stride(),
            )
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            module.load_state_dict({leaf: filled}, strict=False, assign=True)

    def follow(self) -> None:
        """Take over what a phase changed in the plain model: its rotary speeds."""
        self.model.speeds_R = self.shell.speeds_R

    def cuts_of_rank(self, rank: int) -> dict[str, Cut | None]:
        """Return what a rank of the world holds of every parameter."""
        config = self.mesh.config
        return {name: cut_of(name, shape, config, rank) for name, shape in self.shapes.items()}

    def boxes_of_rank(self, rank: int) -> dict[str, Box]:
        """Return where the parts of a rank of this one's stage lie."""
        tables = {
            group.name: rank_table(self.mesh.config, group.name) for group in self.shards.values()
        }
        sharing = {
            name: next(group for group in table if rank in group) for name, table in tables.items()
        }
        boxes = {}
        for name, cut in self.cuts_of_rank(rank).items():
            box = box_of(cut, self.shapes[name])
            if name in self.shards:
                ranks = sharing[self.shards[name].name]
                box = box.run(len(ranks), ranks.index(rank))
            boxes[name] = box
        return boxes

    def as_whole(self, name: str, part: Tensor) -> Tensor:
        """Present this rank's part of a parameter as the whole that ranks hold together."""
        cut, group = self.cuts[name], self.shards.get(name)
        if cut is None:
            return part
        devices = self.mesh.flat_device_mesh(self.mesh.group(cut.axis))
        placements = [Shard(cut.dim)]
        if group is not None and group.size > 1:
            devices = self.mesh.crossed_device_mesh(cut.axis, group.name)
            placements.append(Shard(0))
        shape = self.shapes[name]
        return DTensor.from_local(
            local_of(part),
            devices,
            placements,
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )

    @torch.no_grad()
    def gather(self, name: str) -> Tensor | None:
        """Return a parameter whole on the first rank of the stage; its ranks call it together.

        None on the others, which send what the ranks before them do not have.
        """
        part = local_of(self.model.get_parameter(name)).detach()
        if not self.is_cut:
            config = self.mesh.config
            return None if self.mesh.rank % (config.size // config.pp) else part
        group, shape = self._stage, self.shapes[name]
        holders = self._holders[name]
        if group.rank:
            if group.rank in holders:
                send(part.contiguous(), 0, group).wait()
            return None
        if holders[0].is_whole(shape):
            return part
        whole = part.new_empty(shape)
        for rank, box in holders.items():
            place = box.of(whole)
            came = part if rank == 0 else part.new_empty(place.shape)
            if rank:
                dist.recv(came, group.ranks[rank], group.handle)
            place.copy_(came)
        return whole

    def materialise(self) -> None:
        """Fill the plain model of the first rank with the whole weights; all ranks together."""
        for name in self.shapes:
            whole = self.gather(name)
            if whole is not None and self.is_cut:
                replace_parameter(self.shell, name, whole)
        self.copy_buffers()

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Give the plain model the saved buffers, which are the same on all ranks."""
        saved = self.model.state_dict().keys()
        for name, buffer in self.model.named_buffers():
            if name in saved:
                self.shell.get_buffer(name).copy_(buffer)

    def release(self) -> None:
        """Empty the plain model, unless it is its own part."""
        if not self.is_cut:
            return
        for name in dict(self.shell.named_parameters()):
            empty_parameter(self.shell, name)

    def close(self) -> None:
        """Let the plain model be trained anew: whole on the first rank, in parts on the others."""
        if not self.is_cut:
            return
        for name, shape in self.shapes.items():
            weight = self.model.get_parameter(name).detach()
            box = self._built_box(name)
            if is_sharded_late(name) and isinstance(weight, DTensor):
                weight = weight.full_tensor()
            if self.mesh.is_first:
                continue
            held = local_of(weight)
            if box.is_whole(shape):
                replace_parameter(self.shell, name, held)
            else:
                needs = self.shell.get_parameter(name).requires_grad
                part = HeldPart(shape, box, held, requires_grad=needs)
                put_parameter(self.shell, name, part)

    @cached_property
    def _holders(self) -> dict[str, dict[int, Box]]:
        """The first ranks of the stage that hold each part of a parameter, and where it lies."""
        boxes = [self.boxes_of_rank(rank) for rank in self._stage.ranks]
        holders: dict[str, dict[int, Box]] = {name: {} for name in self.shapes}
        for rank, of_rank in enumerate(boxes):
            for name, box in of_rank.items():
                known = holders[name].values()
                if rank == 0 or (box.rows.start < box.rows.stop and box not in known):
                    holders[name][rank] = box
        return holders

    def _built_box(self, name: str) -> Box:
        return held_box(name, self.shapes[name], self.mesh.config, self.mesh.rank)


def local_of(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor that FSDP2 may have sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _emptied(model: Transformer) -> Transformer:
    """Return a model like this one with its buffers, and its parameters on the meta device."""
    with torch.device("meta"):
        twin = Transformer(model.config)
    for name, parameter in model.named_parameters():
        nothing = torch.empty_like(parameter.data, device="meta")
        twin.get_parameter(name).requires_grad_(parameter.requires_grad)
        replace_parameter(twin, name, nothing)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        persistent = leaf != "speeds_R"
        twin.get_submodule(owner).register_buffer(leaf, buffer.clone(), persistent=persistent)
    return twin.train(model.training)


def _presenting_whole(split: SplitModel) -> Callable[..., None]:
    """Return a hook: parts in a state dict appear as the wholes that the ranks hold together."""

    def present(_: nn.Module, state: dict[str, Any], prefix: str, __: dict[str, Any]) -> None:
        for name in split.cuts:
            state[prefix + name] = split.as_whole(name, state[prefix + name])

    return present
