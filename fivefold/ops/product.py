"""Matrix products with weights in fp32, by the faster of torch's two CPU libraries.

`F.linear` and `torch.mm` hand fp32 to MKL, whose kernels use half of the vector width of an AMD
core with AVX-512. oneDNN, which torch carries for bf16 and fused operators, uses all of it, in fp32
throughout: about twice the speed from a few dozen rows on. Without AVX-512 MKL is the faster one,
by a third, but for weights laid out beforehand (`benchmarks/product.py`). Small products stay where
a call costs least. On one machine the choice hangs on shapes alone: a run repeats bit for bit.

Shapes: M rows, K inner, N columns; X inputs, Y outputs. Surprise: oneDNN's entry point is not in
torch's public interface; where a build lacks it, everything goes to MKL.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

_WORTHWHILE = 1 << 21
"""Multiplications from which oneDNN's dearer call pays."""

_WORTHWHILE_PACKED = 1 << 18
"""The same where the weight is laid out beforehand."""

_FEW_ROWS = 32
"""Numbers of rows up to it are rounded up to a quarter of the power of two below, those above it to
a sixteenth of that or to this: for each number and weight's shape that it meets, oneDNN compiles
and keeps a kernel of half a megabyte, which takes longer than the product and grows the process."""

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)

_BEATS_MKL = _HAS_ONEDNN and torch.cpu._is_avx512_supported()
"""Is oneDNN the faster one for weights as they are?"""


def reference(x: Tensor, weight_YX: Tensor, bias_Y: Tensor | None = None) -> Tensor:
    """Return x W^T + b over the last axis of `x`."""
    return F.linear(x, weight_YX, bias_Y)


def linear(x: Tensor, weight_YX: Tensor, bias_Y: Tensor | None = None) -> Tensor:
    """Compute `reference`, differentiably; `ops.batch_invariant` may replace it."""
    tensors = (x, weight_YX) if bias_Y is None else (x, weight_YX, bias_Y)
    if has_torch_function(tensors):
        return handle_torch_function(linear, tensors, x, weight_YX, bias_Y)
    if not _goes_to_onednn(x, weight_YX, x.numel() * len(weight_YX)):
        return F.linear(x, weight_YX, bias_Y)
    x_MX = _padded(x.reshape(-1, x.shape[-1]))
    if x.dtype == torch.bfloat16:  # torch gives it to oneDNN itself
        out_MY = F.linear(x_MX, weight_YX, bias_Y)
    elif torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        out_MY = _Linear.apply(x_MX, weight_YX, bias_Y)
    else:
        out_MY = _multiply(x_MX, weight_YX, bias_Y)
    return out_MY[: x.shape[:-1].numel()].view(*x.shape[:-1], -1)


def product(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """Return left @ right; without gradient. Either may be a transposed view."""
    tensors = (left_MK, right_KN)
    if has_torch_function(tensors):
        return handle_torch_function(product, tensors, left_MK, right_KN)
    rows, inner = left_MK.shape
    columns = right_KN.shape[1]
    is_bf16 = left_MK.dtype == torch.bfloat16
    if is_bf16 or not _goes_to_onednn(left_MK, right_KN, rows * inner * columns):
        return left_MK @ right_KN
    # A transposed left factor is read faster as the right one, if it is the longer of the two.
    if rows > columns and left_MK.stride(0) == 1:
        return _multiply(right_KN.T, left_MK).T
    return _multiply(left_MK, right_KN.T)


class Packed:
    """A weight that stands still, in the layout that oneDNN multiplies fastest.

    Where few rows are better served by the plain weight, that is kept too. The layout is a copy and
    the plain weight is not: after a change in place the two differ, and the object must be made
    again before the next product.
    """

    def __init__(self, weight_YX: Tensor, rows: int = 8) -> None:
        """Lay out `weight_YX` for about `rows` rows at a time."""
        self._least_rows = -(-_WORTHWHILE_PACKED // max(weight_YX.numel(), 1))
        self._packed: Tensor | None = None
        if _HAS_ONEDNN and weight_YX.dtype == torch.float32 and weight_YX.is_cpu:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_YX, rows)
        needs_plain = self._packed is None or self._least_rows > 1
        self._weight_YX = weight_YX if needs_plain else None

    def linear(self, x_MX: Tensor, bias_Y: Tensor | None = None) -> Tensor:
        """Return x W^T + b; without gradient."""
        plain_YX, packed = self._weight_YX, self._packed
        if packed is None or (plain_YX is not None and len(x_MX) < self._least_rows):
            assert plain_YX is not None, "a weight that is not packed is plain"
            return linear(x_MX, plain_YX, bias_Y)
        return _multiply(_padded(x_MX), packed, bias_Y)[: len(x_MX)]


def common_rows(rows: int) -> int:
    """Return the number to which so many rows are padded, so that few numbers occur."""
    if rows <= _FEW_ROWS:
        step = 1 << max((rows - 1).bit_length() - 3, 0)
    else:
        step = max(_FEW_ROWS, 1 << (rows.bit_length() - 5))
    return -(-rows // step) * step


def _padded(x_MX: Tensor) -> Tensor:
    extra = common_rows(len(x_MX)) - len(x_MX)
    return F.pad(x_MX, (0, 0, 0, extra)) if extra else x_MX


def _goes_to_onednn(x: Tensor, other: Tensor, multiplications: int) -> bool:
    is_possible = _BEATS_MKL and x.is_cpu and x.dtype == other.dtype
    is_worthwhile = multiplications >= _WORTHWHILE and torch.backends.mkldnn.enabled
    return is_possible and is_worthwhile and x.dtype in (torch.float32, torch.bfloat16)


def _multiply(x: Tensor, weight_YX: Tensor, bias_Y: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight_YX, bias_Y, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MX: Tensor, weight_YX: Tensor, bias_Y: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MX, weight_YX)
        return _multiply(x_MX, weight_YX, bias_Y)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_MX, weight_YX = ctx.saved_tensors
        (grad_MY,) = grads
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_x = product(grad_MY, weight_YX) if wants_x else None
        grad_weight = product(grad_MY.T, x_MX) if wants_weight else None
        return grad_x, grad_weight, grad_MY.sum(0) if wants_bias else None
