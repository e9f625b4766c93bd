"""Many small feed-forward networks, each applied to the tokens routed to it.

`reference` loops over experts and is the specification. The fast path sorts the token-expert pairs
by expert once, runs one matrix product an expert over a contiguous slice (in bf16 on a GPU one
call for all experts), and gathers back with a fixed summation order, so that results do not depend
on scheduling. The router's weight multiplies
the activation before the down projection, which is the same function as after it and spares keeping
the outputs for the backward. Source: DeepSeek-V3 report, section 2.1.2.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import has_torch_function

from fivefold.ops.product import common_rows, product


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
    if torch.is_grad_enabled():
        return _Experts.apply(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF)
    return run_pairs(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF)[0]


class Pairs(NamedTuple):
    """The token-expert pairs, grouped by expert and in token order within one, padding after."""

    token_P: Tensor
    """Token of each place; 0 for padding."""
    place_TA: Tensor
    """Place of each pair."""
    parts: list[tuple[int, slice]]
    """Each expert that has pairs, and its places."""
    padding: list[slice]
    """Places of no pair: their rows are zeros and weigh nothing."""


def sort_pairs(chosen_TA: Tensor, experts: int) -> Pairs:
    """Group the pairs of `chosen_TA` by expert, on a CPU padded to a common number of rows."""
    tokens, chosen = chosen_TA.shape
    if tokens == 1 and chosen_TA.is_cpu:
        place_TA = torch.arange(chosen, device=chosen_TA.device)[None]
        parts = [(expert, slice(i, i + 1)) for i, expert in enumerate(chosen_TA[0].tolist())]
        return Pairs(torch.zeros_like(place_TA[0]), place_TA, parts, [])
    flat = chosen_TA.flatten()
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=experts).tolist()
    parts, padding, shift, begin, sorted_pairs = [], [], [], 0, 0
    for expert, count in enumerate(counts):
        shift.append(begin - sorted_pairs)
        sorted_pairs += count
        if count:
            end = begin + (common_rows(count) if chosen_TA.is_cpu else count)
            parts.append((expert, slice(begin, end)))
            if begin + count < end:
                padding.append(slice(begin + count, end))
            begin = end
    sorted_place = torch.arange(len(flat), device=flat.device)
    if begin > sorted_pairs:
        sorted_place += torch.tensor(shift, device=flat.device)[flat[order]]
    place = torch.empty_like(order)
    place[order] = sorted_place
    token_P = order.new_zeros(begin)
    token_P[sorted_place] = order // chosen
    return Pairs(token_P, place.view_as(chosen_TA), parts, padding)


def run_pairs(
    x_TD: Tensor, chosen_TA: Tensor, weight_TA: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> tuple[Tensor, Pairs, list[Tensor]]:
    """Return the output, the pairs, and x, hidden, activation and weight of each pair."""
    pairs = sort_pairs(chosen_TA, gate_up_EFD.shape[0])
    width = down_EDF.shape[-1]
    x_PD = x_TD.index_select(0, pairs.token_P)
    for part in pairs.padding:
        x_PD[part].zero_()
    hidden_PF = grouped_product(x_PD, gate_up_EFD.mT, pairs.parts)
    weight_P = weight_TA.new_zeros(len(x_PD))
    weight_P[pairs.place_TA.flatten()] = weight_TA.flatten()
    weight_P = weight_P.to(x_TD.dtype)
    act_PF = F.silu(hidden_PF[:, :width]).mul_(hidden_PF[:, width:])
    weighted_PF = act_PF * weight_P[:, None]
    y_PD = grouped_product(weighted_PF, down_EDF.mT, pairs.parts)
    return gather_sum(y_PD, pairs.place_TA), pairs, [x_PD, hidden_PF, act_PF, weight_P]


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        chosen_TA: Tensor,
        weight_TA: Tensor,
        gate_up_EFD: Tensor,
        down_EDF: Tensor,
    ) -> Tensor:
        out_TD, pairs, kept = run_pairs(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF)
        ctx.save_for_backward(pairs.token_P, pairs.place_TA, *kept, gate_up_EFD, down_EDF)
        ctx.parts, ctx.weight_dtype = pairs.parts, weight_TA.dtype
        return out_TD

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
        grad_weighted_PF = grouped_product(grad_PD, down_EDF, ctx.parts)
        grad_down = None
        if ctx.needs_input_grad[4]:
            grad_down = weight_gradient(grad_PD, weighted_PF, down_EDF, ctx.parts)
        grad_weight_P = (grad_weighted_PF * act_PF).sum(-1, dtype=ctx.weight_dtype)
        grad_act_PF = grad_weighted_PF.mul_(weight_P[:, None])
        gate, up = hidden_PF[:, :width], hidden_PF[:, width:]
        grad_hidden_PF = torch.empty_like(hidden_PF)
        torch.mul(grad_act_PF, F.silu(gate), out=grad_hidden_PF[:, width:])
        grad_hidden_PF[:, :width] = torch.ops.aten.silu_backward(grad_act_PF.mul_(up), gate)
        grad_x_PD = grouped_product(grad_hidden_PF, gate_up_EFD, ctx.parts)
        grad_gate_up = None
        if ctx.needs_input_grad[3]:
            grad_gate_up = weight_gradient(grad_hidden_PF, x_PD, gate_up_EFD, ctx.parts)
        grad_weight_TA = grad_weight_P[place_TA.flatten()].view_as(place_TA)
        return gather_sum(grad_x_PD, place_TA), None, grad_weight_TA, grad_gate_up, grad_down


def grouped_product(rows_PX: Tensor, weight_EXY: Tensor, parts: list[tuple[int, slice]]) -> Tensor:
    """Multiply each expert's rows by its weight; returns (P, Y)."""
    if _goes_at_once(rows_PX, weight_EXY):
        return F.grouped_mm(rows_PX, weight_EXY, offs=_ends(parts, weight_EXY))
    none = rows_PX.new_empty(0, weight_EXY.shape[2])
    products = [product(rows_PX[part], weight_EXY[expert]) for expert, part in parts]
    return torch.cat([none, *products])


def weight_gradient(
    grad_PY: Tensor, rows_PX: Tensor, weight_EYX: Tensor, parts: list[tuple[int, slice]]
) -> Tensor:
    """Return the gradient of stacked weights: 0 for experts without pairs only."""
    at_once = _goes_at_once(rows_PX, weight_EYX)
    if at_once:
        gradient = F.grouped_mm(grad_PY.T, rows_PX, offs=_ends(parts, weight_EYX))
    else:
        gradient = torch.empty_like(weight_EYX)
    used = {expert for expert, _ in parts}
    for expert in range(len(weight_EYX)):
        if expert not in used:
            gradient[expert].zero_()
    for expert, part in [] if at_once else parts:
        gradient[expert] = product(grad_PY[part].T, rows_PX[part])
    return gradient


def _goes_at_once(rows_PX: Tensor, weight: Tensor) -> bool:
    """Does a GPU's grouped product take these? Its rows are multiples of 16 bytes."""
    is_bf16 = rows_PX.is_cuda and rows_PX.dtype == weight.dtype == torch.bfloat16
    is_aligned = weight.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0
    # What stands in the place of products (`ops.batch_invariant`) stands in the place of this.
    return is_bf16 and is_aligned and len(rows_PX) > 0 and not has_torch_function((rows_PX, weight))


def _ends(parts: list[tuple[int, slice]], weight: Tensor) -> Tensor:
    """Return the place after each expert's last row, int32 (E,)."""
    ends, stop_of, end = [], {expert: part.stop for expert, part in parts}, 0
    for expert in range(len(weight)):
        end = stop_of.get(expert, end)
        ends.append(end)
    return torch.tensor(ends, dtype=torch.int32, device=weight.device)


def gather_sum(y_PD: Tensor, place_TA: Tensor) -> Tensor:
    """Sum each token's pairs in the order of `place_TA`; returns (T, D)."""
    if y_PD.dtype == torch.float32:
        return F.embedding_bag(place_TA, y_PD, mode="sum")
    return y_PD[place_TA.flatten()].view(*place_TA.shape, y_PD.shape[-1]).sum(1)
