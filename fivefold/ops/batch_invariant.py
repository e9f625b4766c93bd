"""Matrix products and activations whose rows do not depend on each other, bit for bit.

A BLAS chooses its kernel by the number of rows, so that one row times a matrix has other rounding
errors alone than among others. Here rows are padded to tiles of eight, and all tiles are one
batched product of one shape: a row gets the same bits in any company and at any place. A GPU's
kernels are chosen by the number of tiles too, and the order of a row's sum by the number of rows:
there everything goes in groups of one size, one call each (`in_groups`).
`BatchInvariant` puts these functions in the place of torch's while it is entered, for modules that
know nothing of them; it belongs to the thread that enters it. Source of the idea: He et al. 2025,
"Defeating nondeterminism in LLM inference".

Surprises: torch computes sigmoids in vectors and what is left over one by one, by another formula,
so that the last numbers of a tensor differ; a plain exponential does not. And that the bits do not
depend on the place in a tile is a property of the kernel, not of the rule; the tests check it.
Products cost more than plain ones.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fivefold.ops import product

TILE_ROWS = 8
"""Rows of a tile: the fewest that give a place in the tile no influence."""

GROUP = 128
"""Rows, or products, of one call on a GPU."""


def in_groups(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply a function that treats the entries of the first axis alike, each by itself.

    On a GPU `GROUP` entries at a time, zeros filling the last group; on a CPU all of them.
    """
    entries = len(tensors[0])
    if tensors[0].is_cpu or not entries:
        return function(*tensors)
    # Copies even of whole groups: the kernel's choice must not depend on where a view begins.
    empty = -entries % GROUP
    padded = [torch.cat([each, each.new_zeros(empty, *each.shape[1:])]) for each in tensors]
    groups = zip(*(each.split(GROUP) for each in padded), strict=True)
    return torch.cat([function(*group) for group in groups])[:entries]


def linear(x: Tensor, weight_YX: Tensor, bias_Y: Tensor | None = None) -> Tensor:
    """Return x W^T + b over the last axis of `x`, each row by itself; differentiable."""
    x_TX = x.reshape(-1, x.shape[-1])
    rows = len(x_TX)
    tiles = -(-rows // TILE_ROWS)
    if not rows:
        return x.new_empty(*x.shape[:-1], len(weight_YX))
    if not x.is_cpu:
        out_TY = in_groups(lambda x_GX: x_GX @ weight_YX.T, x_TX)
        return (out_TY if bias_Y is None else out_TY + bias_Y).view(*x.shape[:-1], -1)
    padded = F.pad(x_TX, (0, 0, 0, tiles * TILE_ROWS - rows))
    # A copy: the kernel's choice must not depend on where a view begins.
    if padded.data_ptr() == x_TX.data_ptr():
        padded = padded.clone()
    tile_NTX = padded.view(tiles, TILE_ROWS, -1)
    out_NTY = torch.bmm(tile_NTX, weight_YX.T[None].expand(tiles, -1, -1))
    out_TY = out_NTY.view(tiles * TILE_ROWS, -1)[:rows]
    if bias_Y is not None:
        out_TY = out_TY + bias_Y
    return out_TY.view(*x.shape[:-1], -1)


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)), each number by itself; differentiable."""
    return 1 / (1 + _decay(x))


def silu(x: Tensor) -> Tensor:
    """Return x / (1 + exp(-x)), each number by itself; differentiable."""
    return x / (1 + _decay(x))


def _decay(x: Tensor) -> Tensor:
    # Beyond 44 the square of the exponential, which the gradient needs, overflows fp32.
    return (-x).clamp(max=40.0).exp()


def row_norm(x: Tensor, **how: Any) -> Tensor:
    """Return `torch.linalg.vector_norm` of the last axis, each row by itself."""
    assert how == {"dim": -1, "keepdim": True}, "norms are those of rows"
    norm_T1 = in_groups(lambda x_GX: torch.linalg.vector_norm(x_GX, **how), x.flatten(0, -2))
    return norm_T1.view(*x.shape[:-1], 1)


class BatchInvariant(TorchFunctionMode):
    """While entered, products of weights, norms of rows, `sigmoid` and `F.silu` are those above."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace what depends on other rows, pass everything else on."""
        kwargs = kwargs or {}
        if func in (F.linear, product.linear):
            return linear(*args, **kwargs)
        if func in (torch.sigmoid, Tensor.sigmoid):
            return sigmoid(*args)
        if func is F.silu:
            return silu(args[0])
        if func is torch.linalg.vector_norm:
            return row_norm(*args, **kwargs)
        if func is product.product:
            left, right = args
            return linear(left, right.T)
        return func(*args, **kwargs)
