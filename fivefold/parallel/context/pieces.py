"""Dense causal attention of scattered queries, document by document.

A rank has some runs of a row as queries and the latents of the whole row. Keys and values of a
document are projected once, up to the last query that the rank has in it; each run of queries then
attends to those up to its own end. No mask is larger than `_MASK_NUMBERS`.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.ops.masked_attention import masked_attention
from fivefold.ops.product import linear
from fivefold.ops.workspace import slices
from fivefold.parallel.context.assignment import Run
from fivefold.parallel.context.work import visible_keys

_MASK_NUMBERS = 2**22
"""Queries x keys of one mask at most."""


class DocumentPart(NamedTuple):
    """The rank's queries in one document of one row."""

    row: int
    first: int
    """Place of the document's first token in the row."""
    spans: list[tuple[int, int]]
    """Begin and end of each run of queries within the document, as places in the row."""


def document_parts(runs: list[Run], documents: np.ndarray) -> list[DocumentPart]:
    """Cut the runs at the borders of documents [rows, tokens]; their order stays."""
    parts: list[DocumentPart] = []
    seen = visible_keys(documents)
    for run in runs:
        inside = seen[run.row, run.begin + 1 : run.end]
        borders = (np.flatnonzero(inside == 1) + run.begin + 1).tolist()
        for begin, end in itertools.pairwise([run.begin, *borders, run.end]):
            first = begin + 1 - int(seen[run.row, begin])
            if parts and (parts[-1].row, parts[-1].first) == (run.row, first):
                parts[-1].spans.append((begin, end))
            else:
                parts.append(DocumentPart(run.row, first, [(begin, end)]))
    return parts


def attend_parts(
    q_nope_NHX: Tensor,
    q_rope_NHR: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    parts: list[DocumentPart],
    scale: float,
) -> Tensor:
    """Attend from the queries of `parts` in their order, as `ops.attention`; returns (N, H, V)."""
    heads, nope = q_nope_NHX.shape[1:]
    q_HNQ = torch.cat([q_nope_NHX, q_rope_NHR], -1).transpose(0, 1)
    outs_NHV, done = [], 0
    for part in parts:
        keys = slice(part.first, part.spans[-1][1])
        kv_SHX = linear(latent_BSC[part.row, keys], kv_b_HC.flatten(0, 1)).unflatten(1, (heads, -1))
        k_nope, v_SHV = kv_SHX.split([nope, kv_SHX.shape[-1] - nope], dim=-1)
        rope_SHR = rope_BSR[part.row, keys, None].expand(-1, heads, -1)
        k_HSQ = torch.cat([k_nope, rope_SHR], -1).transpose(0, 1)
        v_HSV = v_SHV.transpose(0, 1)
        for begin, end in part.spans:
            q = q_HNQ[None, :, done : done + end - begin]
            k, v = k_HSQ[None, :, : end - part.first], v_HSV[None, :, : end - part.first]
            outs_NHV += [out[0].transpose(0, 1) for out in _attend_end(q, k, v, scale)]
            done += end - begin
    return torch.cat(outs_NHV)


def _attend_end(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[Tensor]:
    """Attend causally from the last T of S places, some queries at a time."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys:
        return [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)]
    outs = []
    for some in slices(0, queries, max(_MASK_NUMBERS // keys, 1)):
        seen = keys - queries + some.stop
        mask_TS = torch.ones(some.stop - some.start, seen, dtype=torch.bool, device=q.device)
        mask_TS = mask_TS.tril(seen - len(mask_TS))
        outs.append(
            masked_attention(q[:, :, some], k[:, :, :seen], v[:, :, :seen], mask_TS[None], scale)
        )
    return outs
