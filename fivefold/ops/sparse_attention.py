"""Latent attention to selected keys: gather, attend absorbed, and an exact backward.

Each query has its own K keys, the same for all heads, so that attention runs over the latent: one
gathered row [latent | rotated key] is key and value of every head. Queries go in pieces whose
gathered rows stay in a cache; the backward pass gathers them again, so that nothing but the inputs
is kept.
Source: DeepSeek-V3.2 report, section 2.1; DeepSeek-V2 report, section 2.1.2.

The trick of the backward pass: with the query rows q over the gradient rows c of the heads' latent
context (their rotary part zero), one product with the gathered rows gives scores and gradients of
probabilities; with the score gradients over the probabilities, a second gives query gradients and
context, and a third, transposed, the gradients of the gathered rows.

Shapes here: P queries of all rows, X = C + R.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fivefold.ops.attention import attend_absorbed
from fivefold.ops.gather_keys import KeyGather
from fivefold.ops.workspace import block_numbers, slices


def reference(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    selected_BTK: Tensor,
    scale: float,
) -> Tensor:
    """Attend with whole scores and a mask of the selected keys; see `attend_gathered`."""
    keys = latent_BSC.shape[1]
    place_BTK = selected_BTK.long().where(selected_BTK >= 0, keys)
    visible_BTS = torch.zeros(*selected_BTK.shape[:2], keys + 1, dtype=torch.bool)
    visible_BTS = visible_BTS.to(place_BTK.device).scatter(-1, place_BTK, True)[..., :keys]
    sees_BT11 = visible_BTS.any(-1)[..., None, None]
    # A query without keys attends to all, for a number to multiply by zero.
    out_BTHV = attend_absorbed(
        q_nope_BTHN,
        q_rope_BTHR,
        latent_BSC,
        rope_BSR,
        kv_b_HC,
        visible_BTS | ~sees_BT11[..., 0],
        scale,
    )
    return out_BTHV * sees_BT11


def attend_gathered(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    selected_BTK: Tensor,
    scale: float,
) -> Tensor:
    """Attend to the selected keys of each query; returns (B, T, H, V), exact in all gradients.

    `kv_b_HC` is (H, N + V, C). `selected_BTK` holds places of keys, none twice, and -1 where there
    is none; a query without any gets zeros. Softmax is fp32 (fp64 for fp64 input), gradients of
    keys add up in the same; products run in the inputs' one dtype.
    """
    return attend_gathered_with_shares(
        q_nope_BTHN, q_rope_BTHR, latent_BSC, rope_BSR, kv_b_HC, selected_BTK, scale
    )[0]


def attend_gathered_with_shares(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    selected_BTK: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return `attend_gathered` and the heads' mean probability of each selected key.

    The shares are fp32 (fp64 for fp64 input) of (B, T, K) without gradient, 0 where nothing is
    selected: the target of the indexer's loss.
    """
    return _AttendGathered.apply(
        q_nope_BTHN, q_rope_BTHR, latent_BSC, rope_BSR, kv_b_HC, selected_BTK, scale
    )


class _AttendGathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        rope: Tensor,
        kv_b: Tensor,
        selected: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q_nope, q_rope, latent, rope, kv_b, selected)
        ctx.scale = scale
        nope, heads = q_nope.shape[3], q_nope.shape[2]
        up_k_HNC, up_v_HVC = _split(kv_b, nope)
        q_nope_PHN, q_rope_PHR = q_nope.flatten(0, 1), q_rope.flatten(0, 1)
        gather = KeyGather(torch.cat([latent, rope], -1), selected)
        out_PHV = q_nope.new_empty(len(q_nope_PHN), heads, up_v_HVC.shape[1])
        shares_PK = torch.empty(gather.place_PK.shape, dtype=_wide(q_nope), device=q_nope.device)
        for chunk in _chunks(q_nope_PHN, gather):
            q_PHX = _absorb(q_nope_PHN[chunk], q_rope_PHR[chunk], up_k_HNC, scale)
            context_PHX = torch.empty_like(q_PHX)
            for piece in gather.pieces(chunk):
                within = slice(piece.start - chunk.start, piece.stop - chunk.start)
                rows_PKX, empty_P1K = gather.rows(piece)
                p_PHK = _softmax(torch.bmm(q_PHX[within], rows_PKX.mT), empty_P1K)
                torch.mean(p_PHK, 1, out=shares_PK[piece])
                torch.bmm(p_PHK.to(q_PHX.dtype), rows_PKX, out=context_PHX[within])
            context_HPC = context_PHX[..., : latent.shape[2]].transpose(0, 1)
            out_PHV[chunk] = torch.bmm(context_HPC, up_v_HVC.mT).transpose(0, 1)
        shares_BTK = shares_PK.view(selected.shape)
        ctx.mark_non_differentiable(shares_BTK)
        return out_PHV.view(*q_nope.shape[:3], -1), shares_BTK

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        q_nope, q_rope, latent, rope, kv_b, selected = ctx.saved_tensors
        nope, width = q_nope.shape[3], latent.shape[2]
        up_k_HNC, up_v_HVC = _split(kv_b, nope)
        q_nope_PHN, q_rope_PHR = q_nope.flatten(0, 1), q_rope.flatten(0, 1)
        grad_out_PHV = grads[0].flatten(0, 1)
        gather = KeyGather(torch.cat([latent, rope], -1), selected)
        wide = _wide(q_nope)
        grad_rows_SX = torch.zeros_like(gather.table_SX, dtype=wide)
        grad_q_nope_PHN = torch.empty_like(q_nope_PHN)
        grad_q_rope_PHR = torch.empty_like(q_rope_PHR)
        grad_kv_b = torch.zeros_like(kv_b, dtype=wide)
        for chunk in _chunks(q_nope_PHN, gather):
            q_PHX = _absorb(q_nope_PHN[chunk], q_rope_PHR[chunk], up_k_HNC, ctx.scale)
            grad_out_HPV = grad_out_PHV[chunk].transpose(0, 1)
            grad_context_PHC = torch.bmm(grad_out_HPV, up_v_HVC).transpose(0, 1)
            pull_PHX = torch.zeros_like(q_PHX)
            pull_PHX[..., :width] = grad_context_PHC
            both_PHX = _backward_chunk(gather, chunk, q_PHX, pull_PHX, grad_rows_SX)
            grad_q_PHX, context_PHX = both_PHX.chunk(2, dim=1)
            grad_q_HPC = (grad_q_PHX[..., :width] * ctx.scale).transpose(0, 1)
            context_HPC = context_PHX[..., :width].transpose(0, 1)
            grad_q_nope_PHN[chunk] = torch.bmm(grad_q_HPC, up_k_HNC.mT).transpose(0, 1)
            grad_q_rope_PHR[chunk] = grad_q_PHX[..., width:] * ctx.scale
            q_nope_HNP = q_nope_PHN[chunk].permute(1, 2, 0)
            grad_kv_b[:, :nope] += torch.bmm(q_nope_HNP, grad_q_HPC)
            grad_kv_b[:, nope:] += torch.bmm(grad_out_HPV.mT, context_HPC)
        grad_rows_BSX = grad_rows_SX.view(*latent.shape[:2], -1).to(latent.dtype)
        grad_latent, grad_rope = grad_rows_BSX.split([width, rope.shape[2]], -1)
        return (
            grad_q_nope_PHN.view(q_nope.shape),
            grad_q_rope_PHR.view(q_rope.shape),
            grad_latent,
            grad_rope,
            grad_kv_b.to(kv_b.dtype),
            None,
            None,
        )


def _backward_chunk(
    gather: KeyGather, chunk: slice, q_PHX: Tensor, pull_PHX: Tensor, grad_rows_SX: Tensor
) -> Tensor:
    """Add the gradients of the gathered rows; return gradients of q over context, (P, 2H, X)."""
    heads = q_PHX.shape[1]
    stacked_PHX = torch.cat([q_PHX, pull_PHX], 1)
    result_PHX = torch.empty_like(stacked_PHX)
    for piece in gather.pieces(chunk):
        within = slice(piece.start - chunk.start, piece.stop - chunk.start)
        rows_PKX, empty_P1K = gather.rows(piece)
        products_PHK = torch.bmm(stacked_PHX[within], rows_PKX.mT)
        p_PHK = _softmax(products_PHK[:, :heads], empty_P1K)
        slope_PHK = products_PHK[:, heads:].to(p_PHK.dtype) * p_PHK
        slope_PHK -= p_PHK * slope_PHK.sum(-1, keepdim=True)
        products_PHK[:, :heads], products_PHK[:, heads:] = slope_PHK, p_PHK
        torch.bmm(products_PHK, rows_PKX, out=result_PHX[within])
        gather.add_product_(grad_rows_SX, piece, products_PHK.mT, stacked_PHX[within])
    return result_PHX


def _split(kv_b_HC: Tensor, nope: int) -> tuple[Tensor, Tensor]:
    """Return the up-projections of keys and values; copied once, or each bf16 product copies."""
    return kv_b_HC[:, :nope].contiguous(), kv_b_HC[:, nope:].contiguous()


def _absorb(q_nope_PHN: Tensor, q_rope_PHR: Tensor, up_k_HNC: Tensor, scale: float) -> Tensor:
    """Return scaled queries over the latent and the rotated key, (P, H, X)."""
    q_latent_PHC = torch.bmm(q_nope_PHN.transpose(0, 1), up_k_HNC).transpose(0, 1)
    return torch.cat([q_latent_PHC, q_rope_PHR], -1).mul_(scale)


def _chunks(q_PHN: Tensor, gather: KeyGather) -> Iterator[slice]:
    """Cut the queries whose projections are made in one product a head."""
    queries, heads, _ = q_PHN.shape
    numbers = 2 * heads * gather.table_SX.shape[1]
    return slices(0, queries, max(block_numbers(q_PHN.device) // numbers, 1))


def _softmax(scores_PHK: Tensor, empty_P1K: Tensor | None) -> Tensor:
    """Return probabilities in fp32 or wider; zeros where there is no key."""
    if empty_P1K is None:
        return scores_PHK.softmax(-1, dtype=_wide(scores_PHK))
    p_PHK = scores_PHK.masked_fill(empty_P1K, -torch.inf).softmax(-1, dtype=_wide(scores_PHK))
    return p_PHK.masked_fill_(empty_P1K, 0.0)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
