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
from torch import Tensor

from fivefold.models.moe import Router
from fivefold.models.transformer import Transformer
from fivefold.ops.bf16 import multiplies_bf16
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
from fivefold.plan.block_order import block_events
from fivefold.plan.schedule import Action
from fivefold.train.activations import choose_for

logger = logging.getLogger(__name__)


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
    ) -> None:
        """Copy `model` where it has another dtype; parameters frozen by now are frozen there too.

        The blocks of the layers `recompute` run again in the backward instead of keeping what they
        computed; what those of `offload` keep, storages of `least_bytes`, waits on the host. With
        `activation_bytes` both are chosen for each size of microbatch.

        Raises:
            ConfigError: a layer that the model does not have.
        """
        keep_blocks(model)
        self._source = model
        self._is_copy = model.lm_head.weight.dtype != dtype
        self.model = model
        device = model.lm_head.weight.device
        if dtype == torch.bfloat16 and not multiplies_bf16(device):
            logger.warning(
                "this %s has no bf16 instructions, and emulates them many times slower than fp32:"
                " set `compute_dtype` to float32",
                device.type,
            )
        if self._is_copy:
            self.model = copy.deepcopy(model)
            exact = _exact_parameters(self.model)
            for parameter in self.model.parameters():
                if parameter not in exact:
                    parameter.data = parameter.data.to(dtype)
        blocks = blocks_by_layer(self.model)
        again, moved = (named_layers(layers, blocks) for layers in (recompute, offload))
        for layer, block in blocks.items():
            block.recompute = layer in again
        self.offloader: Offloader | None = None
        """Moves and counts what blocks save; None: everything stays uncounted."""
        if moved or activation_bytes is not None:
            runs = dict.fromkeys(range(model.config.num_hidden_layers), 1)
            if model.mtp is not None:
                runs[model.config.num_hidden_layers] = model.config.fivefold.mtp_depths
            self.offloader = Offloader(
                moved,
                sum(runs.values()),
                device,
                window=widest_window(moved, runs),
                least_bytes=least_bytes,
            )
            if activation_bytes is not None:
                self.offloader.prepare = choose_for(self.model, self.offloader, activation_bytes)
            offload_blocks(self.model, self.offloader)

    def follow(self, row: Sequence[Action], blocks: Mapping[int, int]) -> None:
        """Begin a step in a pipeline: this rank's actions, and the block runs of each stage."""
        if self.offloader is not None:
            assert self.offloader.prepare is None, "a bound is for whole passes through the model"
            self.offloader.follow(block_events(row, blocks))

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


def _exact_parameters(model: Transformer) -> set[Tensor]:
    """Return what starts the residual stream or decides by comparing scores."""
    routers = {module.weight for module in model.modules() if isinstance(module, Router)}
    named = model.named_parameters()
    heads = {value for name, value in named if name.endswith("weights_proj.weight")}
    return {model.embed_tokens.weight, *routers, *heads}
