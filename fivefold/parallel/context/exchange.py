"""Tensors between ranks that each hold other tokens, with gradients.

`gather` gives every rank the tensors of all tokens; its backward pass is a reduce-scatter: each
rank gets back the sum of what all ranks' queries ask of its keys. `swap` is an all-to-all of equal
parts, its own backward pass. Both take as many tokens from each rank; `shard` pads. Sums of
gradients are fp32 or wider.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fivefold.parallel.collectives import all_gather, all_to_all, reduce_scatter
from fivefold.parallel.mesh import Group

Swap = Callable[[Tensor], Tensor]
"""Exchange (ranks, ...) so that part r goes to rank r and the part of rank r stands at r."""


def gather(x_NX: Tensor, group: Group) -> Tensor:
    """Return the (N, X) of every rank in the ranks' order, (ranks x N, X)."""
    return _Gather.apply(x_NX, group)


def swap(x: Tensor, exchange: Swap) -> Tensor:
    """Exchange the parts of (ranks, ...) by `exchange`, `swap_flat` or a `TwoPhase`."""
    return _Swap.apply(x, exchange)


def swap_flat(group: Group) -> Swap:
    """Return the exchange in one all-to-all over the group."""

    def exchange(x: Tensor) -> Tensor:
        ones = [1] * group.size
        return all_to_all(x.contiguous(), ones, ones, group)

    return exchange


def gathered_bytes(tokens: int, width: int, element_bytes: int, ranks: int) -> float:
    """Return what a rank sends so that all have `width` numbers of each of `tokens` (all ranks').

    The way back of the gradients costs the same, in the width of their sums.
    """
    return tokens * width * element_bytes * (ranks - 1) / ranks


def swapped_bytes(tokens: int, width: int, element_bytes: int, ranks: int) -> float:
    """Return what a rank sends to swap `width` numbers (all heads') of each of its own `tokens`."""
    return tokens * width * element_bytes * (ranks - 1) / ranks


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NX: Tensor, group: Group) -> Tensor:
        ctx.group = group
        whole = x_NX.new_empty(group.size * len(x_NX), *x_NX.shape[1:])
        work = all_gather(whole, x_NX.contiguous().view(-1), group)
        if work is not None:
            work.wait()
        return whole

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        (grad,) = grads
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32)).contiguous()
        shard = wide.new_empty(len(wide) // ctx.group.size, *wide.shape[1:])
        work = reduce_scatter(shard.view(-1), wide, ctx.group)
        if work is not None:
            work.wait()
        return shard.to(grad.dtype), None


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Swap) -> Tensor:
        ctx.exchange = exchange
        return exchange(x)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        return ctx.exchange(grads[0]), None
