"""Small modules of which the blocks are made.

`Linear` is where a layer multiplies by its weights: deferred weight gradients and quantisation
replace its forward, nothing else. Some read weights themselves: the experts (`ops.experts`), the
router and the indexer's head weights (fp32), absorbed attention (`kv_b_proj`), the loss's head
(`ops.chunked_cross_entropy`), and an engine, which derives its own (`serve.fused`, `serve.feed`).
Parameters are created empty; `initialise` fills them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.ops.product import linear
from fivefold.ops.rms_norm import rms_norm


class Linear(nn.Module):
    """y = x W^T + b, weight of (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        return linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm with gain and bias, computed in fp32 (the indexer's key norm)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x if x.dtype == torch.float64 else x.float()
        gain, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, gain.shape, gain, bias, self.eps).to(x.dtype)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), the SwiGLU feed-forward."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden)
        self.up_proj = Linear(width, hidden)
        self.down_proj = Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply to (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
