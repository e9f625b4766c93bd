"""Sparse latent attention in a fixed order of additions, for queries that each name their keys.

A softmax over 70 keys and one over 128 of which 58 are hidden add up in different orders, and so
have different bits. Here keys go in tiles of 64, in their order; products have the shape of one
query and one tile, and tiles are added one after the other, from the first. What is hidden adds an
exact zero, so that padding to any length changes nothing: a query's bits depend on its keys alone,
not on the batch, the chunk or the cache. `reference` is plain attention. Differentiable.

Shapes: P queries, S places of keys (-1: none; those that are come first), X = C + R.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.ops.attention import attend_absorbed
from fivefold.ops.batch_invariant import in_groups, linear
from fivefold.ops.select_topk import select_topk
from fivefold.ops.workspace import block_numbers, slices

TILE_KEYS = 64
"""Keys whose contributions are added up by one product."""


def reference(
    q_nope_PHN: Tensor,
    q_rope_PHR: Tensor,
    table_SX: Tensor,
    place_PS: Tensor,
    kv_b_HC: Tensor,
    scale: float,
) -> Tensor:
    """Attend with one softmax over all places; see `stable_attention`."""
    rope = q_rope_PHR.shape[-1]
    keys_PSX = table_SX[place_PS.clamp_min(0)]
    return attend_absorbed(
        q_nope_PHN[:, None],
        q_rope_PHR[:, None],
        keys_PSX[..., :-rope],
        keys_PSX[..., -rope:],
        kv_b_HC,
        (place_PS >= 0)[:, None],
        scale,
    )[:, 0]


def stable_attention(
    q_nope_PHN: Tensor,
    q_rope_PHR: Tensor,
    table_SX: Tensor,
    place_PS: Tensor,
    kv_b_HC: Tensor,
    scale: float,
) -> Tensor:
    """Attend to the rows [latent | rotated key] of `table_SX` that each query names; (P, H, V).

    `kv_b_HC` is (H, N + V, C). Every query has at least one key.
    """
    nope, width = q_nope_PHN.shape[-1], table_SX.shape[-1] - q_rope_PHR.shape[-1]
    heads = range(q_nope_PHN.shape[1])
    q_latent = [linear(q_nope_PHN[:, h], kv_b_HC[h, :nope].T) for h in heads]
    q_PHX = torch.cat([torch.stack(q_latent, 1), q_rope_PHR], -1) * scale
    place_PS = _pad(place_PS)
    size = max(block_numbers(q_PHX.device) // (place_PS.shape[1] * table_SX.shape[1]), 1)
    context_PHC = torch.cat(
        [
            _attend(q_PHX[piece], table_SX, place_PS[piece], width)
            for piece in slices(0, len(q_PHX), size)
        ]
    )
    return torch.stack([linear(context_PHC[:, h], kv_b_HC[h, nope:]) for h in heads], 1)


def _attend(q_PHX: Tensor, table_SX: Tensor, place_PS: Tensor, width: int) -> Tensor:
    """Return each head's context over the latents, tile after tile."""
    queries, keys = place_PS.shape
    tiles = keys // TILE_KEYS
    rows_PSX = table_SX.index_select(0, place_PS.clamp_min(0).flatten())
    rows_NSX = rows_PSX.view(queries * tiles, TILE_KEYS, -1)
    q_NHX = q_PHX[:, None].expand(-1, tiles, -1, -1).flatten(0, 1)
    scores_NHS = in_groups(_match, q_NHX, rows_NSX)
    scores = scores_NHS.view(queries, tiles, *q_PHX.shape[1:2], TILE_KEYS)
    hidden = (place_PS < 0).view(queries, tiles, 1, TILE_KEYS)
    scores = scores.masked_fill(hidden, -torch.inf)
    # A maximum has no rounding: its order does not matter.
    p = (scores - scores.detach().amax((1, 3), keepdim=True)).exp()
    p_NHS = p.flatten(0, 1)
    parts = in_groups(torch.bmm, p_NHS, rows_NSX[..., :width]).view(*p.shape[:3], width)
    weights = in_groups(_sum_keys, p_NHS).view(*p.shape[:3], 1)
    context, weight = parts[:, 0], weights[:, 0]
    for tile in range(1, tiles):
        context, weight = context + parts[:, tile], weight + weights[:, tile]
    return context / weight


@torch.no_grad()
def stable_selection(
    q_PIJ: Tensor, table_SJ: Tensor, weight_PI: Tensor, place_PS: Tensor, k: int
) -> Tensor:
    """Return the k best of each query's places by index score, in their order, -1 for none.

    The scores are those of `index_scores`, by products of one query and one tile.
    """
    if place_PS.shape[1] <= k:
        return place_PS
    place_PS = _pad(place_PS)
    queries, keys = place_PS.shape
    tiles = keys // TILE_KEYS
    scores = []
    size = max(block_numbers(q_PIJ.device) // (keys * max(q_PIJ.shape[1:])), 1)
    for piece in slices(0, queries, size):
        rows = table_SJ.index_select(0, place_PS[piece].clamp_min(0).flatten())
        rows_NSJ = rows.view(-1, TILE_KEYS, rows.shape[-1]).to(q_PIJ.dtype)
        q_NIJ = q_PIJ[piece, None].expand(-1, tiles, -1, -1).flatten(0, 1)
        weight_N1I = weight_PI[piece, None].expand(-1, tiles, -1).flatten(0, 1)[:, None]
        match_NIS = in_groups(_match, q_NIJ, rows_NSJ).relu_()
        scores.append(in_groups(torch.bmm, weight_N1I, match_NIS).view(-1, keys))
    scores_PS = torch.cat(scores).masked_fill_(place_PS < 0, -torch.inf)
    chosen_PK = select_topk(scores_PS, k)
    return torch.where(chosen_PK < 0, -1, place_PS.gather(1, chosen_PK.clamp_min(0)))


def _match(q_NHX: Tensor, rows_NSX: Tensor) -> Tensor:
    return torch.bmm(q_NHX, rows_NSX.mT)


def _sum_keys(p_NHS: Tensor) -> Tensor:
    return p_NHS.sum(-1, keepdim=True)


def _pad(place_PS: Tensor) -> Tensor:
    """Fill up to whole tiles."""
    return F.pad(place_PS, (0, -place_PS.shape[1] % TILE_KEYS), value=-1)
