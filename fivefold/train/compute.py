"""What forward and backward run on: the model itself, or a copy of it in a lower precision.

The optimizer's weights stay fp32, for a bf16 weight has no bits for small updates. Under
`compute_dtype: bfloat16` each step casts them once into a copy, runs on the copy, where matrix
products take bf16 and accumulate in fp32, and adds each microbatch's gradients up in fp32. Source:
Micikevicius et al. 2018 (arXiv 1710.03740), section 3.1. Surprise: some weights stay fp32 in the
copy too. Embeddings do, so that the residual stream, which every layer adds to, is fp32 and each
norm casts it; routers and index head weights do, for a rounded score chooses other experts or keys.
"""

import copy
import logging

import torch
from torch import Tensor

from fivefold.models.moe import Router
from fivefold.models.transformer import Block, Transformer
from fivefold.ops.bf16 import multiplies_bf16

logger = logging.getLogger(__name__)


class ComputeModel:
    """The model to run, beside the one whose weights are updated; without a copy they are one."""

    def __init__(self, model: Transformer, dtype: torch.dtype, *, recompute: bool = False) -> None:
        """Copy `model` where it has another dtype; parameters frozen by now are frozen there too.

        With `recompute` the blocks run again in the backward instead of keeping what they computed.
        """
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
        for module in self.model.modules():
            if isinstance(module, Block):
                module.recompute = recompute

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
