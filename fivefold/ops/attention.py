"""Latent attention in its two forms, behind one signature.

Both take queries with and without position, the normalised key-value latent, the rotated shared key
and the up-projection `kv_b` of MLA, and return the heads' outputs. `attend_expanded` builds keys
and values a head (2 x (Q + V) FLOPs a pair and head): training and prefill. `attend_absorbed` folds
the up-projection into the query and the output and runs as multi-query attention over the latent (2
x (2C + R)): decode, and wherever each query has its own keys. Source: DeepSeek-V2 report, section
2.1.2. Softmax is fp32 (fp64 for fp64 input).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.ops.masked_attention import masked_attention
from fivefold.ops.product import linear


def attend_expanded(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    visible_BTS: Tensor | None,
    scale: float,
) -> Tensor:
    """Attend with keys and values of every head; returns (B, T, H, V).

    `kv_b_HC` is (H, N + V, C). `visible_BTS` marks the keys of each query; None means causal where
    T = S and everything where T = 1.
    """
    rows, queries, heads, nope = q_nope_BTHN.shape
    keys = latent_BSC.shape[1]
    kv_BSHX = linear(latent_BSC, kv_b_HC.flatten(0, 1)).view(rows, keys, heads, -1)
    k_nope, v = kv_BSHX.split([nope, kv_BSHX.shape[-1] - nope], dim=-1)
    q_BTHQ = torch.cat([q_nope_BTHN, q_rope_BTHR], -1)
    k_BSHQ = torch.cat([k_nope, rope_BSR[:, :, None].expand(-1, -1, heads, -1)], -1)
    q, k, v = q_BTHQ.transpose(1, 2), k_BSHQ.transpose(1, 2), v.transpose(1, 2)
    if visible_BTS is not None:
        return masked_attention(q, k, v, visible_BTS, scale).transpose(1, 2)
    out_BHTV = F.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, scale=scale)
    return out_BHTV.transpose(1, 2)


def attend_documents(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    segments: Sequence[tuple[int, int, int]],
    scale: float,
) -> Tensor:
    """Attend within each (row, begin, end) of packed rows alone; otherwise as `attend_expanded`.

    The segments follow each other and cover every row, so that no mask is needed at any length.
    """
    outs: dict[int, list[Tensor]] = {}
    for row, begin, end in segments:
        here = slice(row, row + 1), slice(begin, end)
        parts = q_nope_BTHN[here], q_rope_BTHR[here], latent_BSC[here], rope_BSR[here]
        outs.setdefault(row, []).append(attend_expanded(*parts, kv_b_HC, None, scale))
    return torch.cat([torch.cat(outs[row], dim=1) for row in range(len(q_nope_BTHN))])


def attend_absorbed(
    q_nope_BTHN: Tensor,
    q_rope_BTHR: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    visible_BTS: Tensor | None,
    scale: float,
) -> Tensor:
    """Attend over the latent itself; same arguments and result as `attend_expanded`."""
    rows, queries, heads, nope = q_nope_BTHN.shape
    up_k_HNC, up_v_HVC = kv_b_HC.split([nope, kv_b_HC.shape[1] - nope], dim=1)
    q_HXN = q_nope_BTHN.flatten(0, 1).transpose(0, 1)
    q_latent_BTHC = torch.bmm(q_HXN, up_k_HNC).transpose(0, 1).view(rows, queries, heads, -1)
    q_BX = torch.cat([q_latent_BTHC, q_rope_BTHR], -1).view(rows, queries * heads, -1)
    keys_BSX = torch.cat([latent_BSC, rope_BSR], -1)
    scores_BTHS = torch.bmm(q_BX, keys_BSX.transpose(1, 2)).view(rows, queries, heads, -1) * scale
    if visible_BTS is None and queries > 1:
        visible_BTS = torch.ones(queries, keys_BSX.shape[1], dtype=torch.bool, device=q_BX.device)
        visible_BTS = visible_BTS.tril()[None]
    if visible_BTS is not None:
        scores_BTHS = scores_BTHS.masked_fill(~visible_BTS[:, :, None], -torch.inf)
    wide = torch.float64 if scores_BTHS.dtype == torch.float64 else torch.float32
    p_BTHS = scores_BTHS.softmax(-1, dtype=wide).to(latent_BSC.dtype)
    out_BTHC = torch.bmm(p_BTHS.view(rows, queries * heads, -1), latent_BSC)
    out_HXC = out_BTHC.view(rows * queries, heads, -1).transpose(0, 1)
    return (
        torch.bmm(out_HXC, up_v_HVC.transpose(1, 2))
        .transpose(0, 1)
        .reshape(rows, queries, heads, -1)
    )
