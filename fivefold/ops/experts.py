"""Many small feed-forward networks, each applied to the tokens routed to it.

`reference` loops over experts and is the specification. The fast path sorts the token-expert pairs
by expert once, runs one matrix product an expert over a contiguous slice, and gathers back with a
fixed summation order, so that results do not depend on scheduling. The router's weight multiplies
the activation before the down projection, which is the same function as after it and spares keeping
the outputs for the backward. Source: DeepSeek-V3 report, section 2.1.2.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def reference(
    x_TD: Tensor, chosen_TA: Tensor, weight_TA: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Sum over each token's experts of weight x down(silu(gate) x up); returns (T, D).

    `gate_up_EFD` holds 2F rows an expert, gate rows first; `chosen_TA` is int64 without repetition.
    """
    out_TD = torch.zeros_like(x_TD)
    for expert in range(gate_up_EFD.shape[0]):
        token, place = torch.where(chosen_TA == expert)
        gate, up = F.linear(x_TD[token], gate_up_EFD[expert]).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down_EDF[expert])
        out_TD = out_TD.index_add(0, token, y * weight_TA[token, place, None].to(y.dtype))
    return out_TD


def run_experts(
    x_TD: Tensor, chosen_TA: Tensor, weight_TA: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Compute `reference` with grouped matrix products and a hand-written backward."""
    return _Experts.apply(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF)


def sort_pairs(chosen_TA: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Group the token-expert pairs by expert, in token order.

    Returns the token of each sorted pair (P,), the sorted place of each pair (T, A), and the number
    of pairs of each expert.
    """
    flat = chosen_TA.flatten()
    order = torch.argsort(flat, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    counts = torch.bincount(flat, minlength=experts).tolist()
    return order // chosen_TA.shape[1], place.view_as(chosen_TA), counts


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF):
        token_P, place_TA, counts = sort_pairs(chosen_TA, gate_up_EFD.shape[0])
        width = down_EDF.shape[-1]
        x_PD = x_TD.index_select(0, token_P)
        hidden_PF = x_PD.new_empty(x_PD.shape[0], 2 * width)
        for expert, part in _slices(counts):
            torch.mm(x_PD[part], gate_up_EFD[expert].T, out=hidden_PF[part])
        weight_P = torch.empty_like(weight_TA.flatten())
        weight_P[place_TA.flatten()] = weight_TA.flatten()
        weight_P = weight_P.to(x_TD.dtype)
        act_PF = F.silu(hidden_PF[:, :width]).mul_(hidden_PF[:, width:])
        weighted_PF = act_PF * weight_P[:, None]
        y_PD = torch.empty_like(x_PD)
        for expert, part in _slices(counts):
            torch.mm(weighted_PF[part], down_EDF[expert].T, out=y_PD[part])
        ctx.save_for_backward(
            token_P, place_TA, x_PD, hidden_PF, act_PF, weight_P, gate_up_EFD, down_EDF
        )
        ctx.counts, ctx.weight_dtype = counts, weight_TA.dtype
        return _gather_sum(y_PD, place_TA)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_TD,) = grads
        token_P, place_TA, x_PD, hidden_PF, act_PF, weight_P, gate_up_EFD, down_EDF = (
            ctx.saved_tensors
        )
        width = down_EDF.shape[-1]
        weighted_PF = act_PF * weight_P[:, None]
        grad_PD = grad_TD.index_select(0, token_P)
        grad_weighted_PF = torch.empty_like(act_PF)
        grad_down = torch.zeros_like(down_EDF) if ctx.needs_input_grad[4] else None
        for expert, part in _slices(ctx.counts):
            torch.mm(grad_PD[part], down_EDF[expert], out=grad_weighted_PF[part])
            if grad_down is not None:
                torch.mm(grad_PD[part].T, weighted_PF[part], out=grad_down[expert])
        grad_weight_P = (grad_weighted_PF * act_PF).sum(-1, dtype=ctx.weight_dtype)
        grad_act_PF = grad_weighted_PF.mul_(weight_P[:, None])
        gate, up = hidden_PF[:, :width], hidden_PF[:, width:]
        grad_hidden_PF = torch.empty_like(hidden_PF)
        torch.mul(grad_act_PF, F.silu(gate), out=grad_hidden_PF[:, width:])
        grad_hidden_PF[:, :width] = torch.ops.aten.silu_backward(grad_act_PF.mul_(up), gate)
        grad_x_PD = torch.empty_like(x_PD)
        grad_gate_up = torch.zeros_like(gate_up_EFD) if ctx.needs_input_grad[3] else None
        for expert, part in _slices(ctx.counts):
            torch.mm(grad_hidden_PF[part], gate_up_EFD[expert], out=grad_x_PD[part])
            if grad_gate_up is not None:
                torch.mm(grad_hidden_PF[part].T, x_PD[part], out=grad_gate_up[expert])
        grad_weight_TA = grad_weight_P[place_TA.flatten()].view_as(place_TA)
        return _gather_sum(grad_x_PD, place_TA), None, grad_weight_TA, grad_gate_up, grad_down


def _slices(counts: list[int]) -> list[tuple[int, slice]]:
    """Return (expert, its slice of the sorted pairs) for the experts that have tokens."""
    slices, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            slices.append((expert, slice(start, start + count)))
        start += count
    return slices


def _gather_sum(y_PD: Tensor, place_TA: Tensor) -> Tensor:
    """Sum each token's pairs in the order of `place_TA`; returns (T, D)."""
    if y_PD.dtype == torch.float32:
        return F.embedding_bag(place_TA, y_PD, mode="sum")
    return y_PD[place_TA.flatten()].view(*place_TA.shape, y_PD.shape[-1]).sum(1)
