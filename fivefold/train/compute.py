"""What forward and backward run on: the model itself, or a copy of it in a lower precision.

The optimizer's weights stay fp32, for a bf16 weight has no bits for small updates. Under
`compute_dtype: bfloat16` each step casts them once into a copy, runs on the copy, where matrix
products take bf16 and accumulate in fp32, and adds each microbatch's gradients up in fp32. Source:
Micikevicius et al. 2018 (arXiv 1710.03740), section 3.1. Surprise: some weights stay fp32 in the
copy too. Embeddings do, so that the residual stream, which every layer adds to, is fp32 and each
norm casts it; routers and index head weights do, for a rounded score chooses other experts or keys.

It also says what becomes of what each layer saves for its backward: kept, computed again, moved to
the host (`parallel.offload`), or whatever is cheapest under a bound on bytes (`train.activations`).
"""

import copy
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fivefold.models.moe import Router
from fivefold.models.transformer import Transformer
from fivefold.ops.bf16 import multiplies_bf16
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.offload import (
    LEAST_BYTES,
    Layers,
    Offloader,
    blocks_by_layer,
    keep_blocks,
    named_layers,
    offload_blocks,
    widest_window,
)
from fivefold.plan.activation_order import step_order
from fivefold.plan.schedule import Action
from fivefold.train.activations import ActivationBound, StepBatches

logger = logging.getLogger(__name__)


class LayerTreatment:
    """What becomes of what the layers of a model save for their backward."""

    def __init__(
        self,
        model: Transformer,
        dtype: torch.dtype,
        *,
        recompute: Layers = False,
        offload: Layers = False,
        activation_bytes: int | None = None,
        least_bytes: int = LEAST_BYTES,
        mesh: Mesh | None = None,
    ) -> None:
        """Treat the layers of `model`, which computes in `dtype`.

        The blocks of the layers `recompute` run again in the backward instead of keeping what they
        computed; what those of `offload` keep, storages of `least_bytes`, waits on the host. With
        `activation_bytes` both are chosen for each size of microbatch, as this rank of `mesh` has
        it; None: one process, or a rank that shares no layer.

        Raises:
            ConfigError: a layer that the model does not have.
        """
        keep_blocks(model)
        blocks = blocks_by_layer(model)
        again, moved = (named_layers(layers, blocks) for layers in (recompute, offload))
        for layer, block in blocks.items():
            block.recompute = layer in again
        self.offloader: Offloader | None = None
        """Moves and counts what blocks save; None: everything stays uncounted."""
        self.bound: ActivationBound | None = None
        """Chooses for each size of microbatch; None: layers are treated as named."""
        if not moved and activation_bytes is None:
            return
        runs = dict.fromkeys(range(model.config.num_hidden_layers), 1)
        if model.mtp is not None:
            runs[model.config.num_hidden_layers] = model.config.fivefold.mtp_depths
        self.offloader = Offloader(
            moved,
            sum(runs.values()),
            model.speeds_R.device,
            window=widest_window(moved, runs),
            # The bound reckons that all of it leaves.
            least_bytes=least_bytes if activation_bytes is None else 1,
        )
        if activation_bytes is not None:
            self.bound = ActivationBound(model, dtype, self.offloader, activation_bytes, mesh)
        offload_blocks(model, self.offloader)

    def follow(
        self,
        row: Sequence[Action],
        layers: Mapping[int, Sequence[int]],
        microbatches: StepBatches,
        *,
        defers: bool,
    ) -> None:
        """Begin a step in a pipeline: this rank's actions, and the layers that each stage runs.

        `defers` says whether weight gradients are put off.
        """
        if self.offloader is None:
            return
        order = step_order(row, layers)
        self.offloader.follow(order.events)
        if self.bound is not None:
            received = {of_stage[0] for s, of_stage in layers.items() if s and of_stage}
            self.bound.follow(order, received, microbatches, defers=defers)


class ComputeModel:
    """The model to run, beside the one whose weights are updated; without a copy they are one."""

    def __init__(
        self,
        model: Transformer,
        dtype: torch.dtype,
        *,
        recompute: Layers = False,
        offload: Layers = False,
        activation_bytes: int | None = None,
        least_bytes: int = LEAST_BYTES,
        casts: bool = False,
        mesh: Mesh | None = None,
    ) -> None:
        """Copy `model` where it has another dtype; parameters frozen by now are frozen there too.

        A model that `casts` its weights by itself is not copied (`parallel.fsdp`). Other arguments
        are those of a `LayerTreatment`.

        Raises:
            ConfigError: a layer that the model does not have.
        """
        keep_blocks(model)
        self._source = model
        self._is_copy = model.lm_head.weight.dtype != dtype and not casts
        self.model = model
        device = model.speeds_R.device
        if dtype == torch.bfloat16 and not multiplies_bf16(device):
            logger.warning(
                "this %s has no bf16 instructions, and emulates them many times slower than fp32:"
                " set `compute_dtype` to float32",
                device.type,
            )
        if self._is_copy:
            self.model = copy.deepcopy(model)
            exact = exact_parameters(self.model)
            for parameter in self.model.parameters():
                if parameter not in exact:
                    parameter.data = parameter.data.to(dtype)
        self.treatment = LayerTreatment(
            self.model,
            dtype,
            recompute=recompute,
            offload=offload,
            activation_bytes=activation_bytes,
            least_bytes=least_bytes,
            mesh=mesh,
        )

    @property
    def offloader(self) -> Offloader | None:
        """What moves and counts what blocks save."""
        return self.treatment.offloader

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights and buffers as they are now."""
        if self._is_copy:
            torch._foreach_copy_(list(self.model.parameters()), list(self._source.parameters()))
            for mine, theirs in zip(self.model.buffers(), self._source.buffers(), strict=True):
                mine.copy_(theirs)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of a backward to those of the weights, and drop them here."""
        if not self._is_copy:
            return
        pairs = zip(self._source.parameters(), self.model.parameters(), strict=True)
        for weight, parameter in pairs:
            if parameter.grad is None:
                continue
            if weight.grad is None:
                weight.grad = parameter.grad.to(weight.dtype)
            else:
                weight.grad += parameter.grad
            parameter.grad = None


def exact_parameters(model: Transformer) -> set[nn.Parameter]:
    """Return what starts the residual stream or decides by comparing scores."""
    routers = {module.weight for module in model.modules() if isinstance(module, Router)}
    named = model.named_parameters()
    heads = {value for name, value in named if name.endswith("weights_proj.weight")}
    return {model.get_parameter("embed_tokens.weight"), *routers, *heads}
