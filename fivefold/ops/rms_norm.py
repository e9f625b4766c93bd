"""Root-mean-square normalisation.

Source: Zhang and Sennrich 2019, equation 4. Surprise: the mean of squares is taken in fp32 even for
bf16 input, and the gain multiplies after the cast back, as in the released models. The result has
the gain's dtype: an fp32 residual stream enters bf16 matrix products here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def reference(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Scale each row of (..., D) to unit root-mean-square, then by `gain` (D,)."""
    wide = x if x.dtype == torch.float64 else x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse_rms).to(gain.dtype) * gain


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Compute `reference` with a hand-written backward that keeps one number a row."""
    if torch.is_grad_enabled():
        return _RmsNorm.apply(x, gain, eps)
    return _normalise(x, gain, eps)[0]


def _normalise(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the result and each row's inverse root-mean-square."""
    wide = x if x.dtype == torch.float64 else x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse_rms = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse_rms).to(gain.dtype) * gain, inverse_rms


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        y, inverse_rms = _normalise(x, gain, eps)
        ctx.save_for_backward(x, gain, inverse_rms)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = grads
        x, gain, inverse_rms = ctx.saved_tensors
        wide = x if x.dtype == torch.float64 else x.float()
        unit = wide * inverse_rms
        wide_grad = grad.to(unit.dtype)
        grad_gain = None
        if ctx.needs_input_grad[1]:
            grad_gain = (wide_grad * unit).sum_to_size(gain.shape).to(gain.dtype)
        pulled = wide_grad * gain
        along = (pulled * unit).mean(-1, keepdim=True)
        grad_x = pulled.sub_(unit.mul_(along)).mul_(inverse_rms)
        return grad_x.to(x.dtype), grad_gain, None
