"""Attention over the pool: absorbed multi-query attention of decoded rows and of prompt chunks.

One gathered row of the pool is key and value of every head, so that nothing is expanded. Once a
query has more keys than `index_topk`, index scores and the one selection rule narrow them; a
selection is kept as slots, which a `shared` layer above reuses as they are, for all layers share
the block table. Softmax and index scores are fp32.

Shapes: P queries, S keys, K selected keys, H heads, X = R + C (rotary channels first), I index
heads of J channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.ops.select_topk import select_topk
from fivefold.ops.sparse_index import sparse_index
from fivefold.ops.workspace import block_numbers, slices
from fivefold.serve.batch import Chunk, Decoded
from fivefold.serve.pool import CacheRow


class IndexQueries(NamedTuple):
    """What the indexer of a layer scores with, fp32."""

    q_TIJ: Tensor
    weight_TI: Tensor


class Picked(NamedTuple):
    """Selected slots of P queries."""

    slot_PK: Tensor
    bias_P1K: Tensor | None
    """-inf where a query has fewer keys; None where every place is taken."""


def attend_decoded(
    q_PHX: Tensor,
    cache: CacheRow,
    decoded: Decoded,
    index: IndexQueries | None,
    picked: Picked | None,
    *,
    topk: int,
    rope: int,
) -> tuple[Tensor, Picked | None]:
    """Attend from rows with keys of their own; returns the heads' latents and what was selected.

    `index` is None for a layer that shares `picked` from below; `topk` is beyond any length for a
    model without indexer.
    """
    most = decoded.slot_PS.shape[1]
    if most <= topk:
        if decoded.begin is not None:
            keys_PSX = cache.latent_SX[decoded.begin : decoded.begin + most][None]
        else:
            keys_PSX = _rows(cache.latent_SX, decoded.slot_PS)
        return _attend_rows(q_PHX, keys_PSX, decoded.bias_P1S, rope), None
    if index is not None:
        picked = _pick(cache, decoded, index, topk)
    assert picked is not None, "a layer that shares a selection lies above one that makes it"
    keys_PKX = _rows(cache.latent_SX, picked.slot_PK)
    return _attend_rows(q_PHX, keys_PKX, picked.bias_P1K, rope), picked


def _pick(cache: CacheRow, decoded: Decoded, index: IndexQueries, topk: int) -> Picked:
    assert cache.index_SJ is not None, "the layer keeps index keys"
    most = decoded.slot_PS.shape[1]
    if decoded.begin is not None:
        keys_PSJ = cache.index_SJ[decoded.begin : decoded.begin + most][None]
    else:
        keys_PSJ = _rows(cache.index_SJ, decoded.slot_PS)
    match_PIS = torch.bmm(index.q_TIJ, keys_PSJ.to(index.q_TIJ.dtype).mT).relu_()
    weight_P1I = index.weight_TI[:, None]
    if decoded.bias_P1S is None:
        scores_P1S = torch.bmm(weight_P1I, match_PIS)
    else:
        scores_P1S = torch.baddbmm(decoded.bias_P1S, weight_P1I, match_PIS)
    place_PK = select_topk(scores_P1S[:, 0], topk)
    if decoded.least_keys >= topk:
        return Picked(decoded.slot_PS.gather(1, place_PK), None)
    slot_PK = decoded.slot_PS.gather(1, place_PK.clamp_min(0))
    return Picked(slot_PK, _bias_of(place_PK < 0))


def attend_chunk(
    q_THX: Tensor,
    cache: CacheRow,
    chunk: Chunk,
    index: IndexQueries | None,
    picked: Picked | None,
    *,
    topk: int,
    rope: int,
) -> tuple[Tensor, Picked | None]:
    """Attend from the last T of the chunk's keys; as `attend_decoded` otherwise."""
    keys = len(chunk.slot_S)
    if keys <= topk:
        keys_SX = cache.latent_SX.index_select(0, chunk.slot_S)
        return _attend_causally(q_THX, keys_SX, rope), None
    if index is not None:
        assert cache.index_SJ is not None, "the layer keeps index keys"
        index_SJ = cache.index_SJ.index_select(0, chunk.slot_S).to(index.q_TIJ.dtype)
        place_TK = sparse_index(index.q_TIJ[None], index_SJ[None], index.weight_TI[None], topk)[0]
        slot_TK = chunk.slot_S[place_TK.clamp_min(0).long()]
        full = keys - len(q_THX) + 1 >= topk
        picked = Picked(slot_TK, None if full else _bias_of(place_TK < 0))
    assert picked is not None, "a layer that shares a selection lies above one that makes it"
    context_THC = q_THX.new_empty(*q_THX.shape[:2], q_THX.shape[2] - rope)
    numbers = picked.slot_PK.shape[1] * q_THX.shape[2]
    for piece in slices(0, len(q_THX), max(block_numbers(q_THX.device) // numbers, 1)):
        keys_PKX = _rows(cache.latent_SX, picked.slot_PK[piece])
        bias = None if picked.bias_P1K is None else picked.bias_P1K[piece]
        context_THC[piece] = _attend_rows(q_THX[piece], keys_PKX, bias, rope)
    return context_THC, picked


def _rows(table_SX: Tensor, slot_PS: Tensor) -> Tensor:
    return table_SX.index_select(0, slot_PS.flatten()).view(*slot_PS.shape, -1)


def _bias_of(is_hidden_PK: Tensor) -> Tensor:
    bias_PK = torch.zeros(is_hidden_PK.shape, device=is_hidden_PK.device)
    return bias_PK.masked_fill_(is_hidden_PK, -torch.inf)[:, None]


def _attend_rows(q_PHX: Tensor, keys_PSX: Tensor, bias_P1S: Tensor | None, rope: int) -> Tensor:
    """Attend each query's heads to its rows; returns (P, H, C)."""
    if bias_P1S is None:
        scores_PHS = torch.bmm(q_PHX, keys_PSX.mT)
    else:
        scores_PHS = torch.baddbmm(bias_P1S.to(q_PHX.dtype), q_PHX, keys_PSX.mT)
    p_PHS = scores_PHS.softmax(-1, dtype=torch.float32).to(q_PHX.dtype)
    return torch.bmm(p_PHS, keys_PSX[..., rope:])


def _attend_causally(q_THX: Tensor, keys_SX: Tensor, rope: int) -> Tensor:
    """Attend T queries at the end of S keys; returns (T, H, C)."""
    queries, heads, _ = q_THX.shape
    keys = len(keys_SX)
    q_1HTX = q_THX.transpose(0, 1)[None]
    keys_1HSX = keys_SX[None, None].expand(-1, heads, -1, -1)
    visible_TS = None
    if queries < keys:
        visible_TS = torch.ones(queries, keys, dtype=torch.bool, device=q_THX.device)
        visible_TS = visible_TS.tril(keys - queries)
    out_1HTX = F.scaled_dot_product_attention(
        q_1HTX, keys_1HSX, keys_1HSX, attn_mask=visible_TS, is_causal=visible_TS is None, scale=1.0
    )
    return out_1HTX[0, :, :, rope:].transpose(0, 1)
