"""Masked causal attention that leaves out the keys after each block of queries.

A fused kernel that is given a mask reads all of it, the half above the diagonal included. Here the
queries run in blocks, each against the keys up to its own end: at 512 tokens 62% of the work.
`reference` is torch's own attention with the whole mask. CPU only; elsewhere the whole mask is
given to torch, whose GPU kernels choose for themselves.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_BLOCK = 128
"""Queries of a block: below it the kernel's fixed cost grows, above it fewer keys are left out."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def reference(q: Tensor, k: Tensor, v: Tensor, visible_BTS: Tensor, scale: float) -> Tensor:
    """Attend (B, H, T, Q) to (B, H, S, Q) and (B, H, S, V) where `visible_BTS` allows."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible_BTS[:, None], scale=scale)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible_BTS: Tensor, scale: float) -> Tensor:
    """Compute `reference` for a mask that shows no query a key after itself.

    Query t of T stands at key S - T + t, and sees at least one key.
    """
    blockwise = q.is_cpu and q.shape[2] > _BLOCK and q.shape[-1] == v.shape[-1]
    if not blockwise:
        return reference(q, k, v, visible_BTS, scale)
    bias = torch.where(visible_BTS, q.new_zeros(()), q.new_full((), -torch.inf))
    return _MaskedAttention.apply(q, k, v, bias[:, None], scale)


class _MaskedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        outs, sums = [], []
        for block, keys in _blocks(q.shape[2], k.shape[2]):
            out, sum_ = _forward(
                q[:, :, block],
                k[:, :, keys],
                v[:, :, keys],
                attn_mask=bias[:, :, block, keys],
                scale=scale,
            )
            outs.append(out)
            sums.append(sum_)
        ctx.save_for_backward(q, k, v, bias, *outs, *sums)
        ctx.scale = scale
        return torch.cat(outs, dim=2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad,) = grads
        q, k, v, bias, *saved = ctx.saved_tensors
        blocks = _blocks(q.shape[2], k.shape[2])
        outs, sums = saved[: len(blocks)], saved[len(blocks) :]
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for (block, keys), out, sum_ in zip(blocks, outs, sums, strict=True):
            part_q, part_k, part_v = _backward(
                grad[:, :, block],
                q[:, :, block],
                k[:, :, keys],
                v[:, :, keys],
                out,
                sum_,
                0.0,
                False,
                attn_mask=bias[:, :, block, keys],
                scale=ctx.scale,
            )
            grad_q[:, :, block] = part_q
            grad_k[:, :, keys] += part_k
            grad_v[:, :, keys] += part_v
        return grad_q, grad_k, grad_v, None, None


def _blocks(queries: int, keys: int) -> list[tuple[slice, slice]]:
    """Cut the queries into blocks; beside each, the keys up to its last query."""
    before = keys - queries
    ends = [min(begin + _BLOCK, queries) for begin in range(0, queries, _BLOCK)]
    return [
        (slice(begin, end), slice(0, before + end))
        for begin, end in zip(range(0, queries, _BLOCK), ends, strict=True)
    ]
