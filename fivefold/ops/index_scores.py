"""The indexer's scores: I[t, s] = sum_j w[t, j] relu(q[t, j] . k[s]) for keys not after the query.

Source: DeepSeek-V3.2 report, equation 1. Scored in blocks of queries, each against the keys up to
its end, so that the scores of single heads exist for one block at a time and stay in the cache;
multiplying the head axis into the query axis keeps one matrix product a block (a product that
broadcasts keys over queries copies them: 12 times slower).
"""

import torch
from torch import Tensor

_BLOCK = 64
"""Queries of a block: 8 heads x 64 queries x 512 keys of fp32 are one MiB a row."""


def reference(q_BTIJ: Tensor, key_BSJ: Tensor, weight_BTI: Tensor) -> Tensor:
    """Score every pair at once; -inf for keys after the query, which stands at key S - T + t."""
    match_BITS = torch.einsum("btij,bsj->bits", q_BTIJ, key_BSJ).relu()
    scores_BTS = torch.einsum("bits,bti->bts", match_BITS, weight_BTI)
    queries, keys = scores_BTS.shape[1:]
    before = torch.ones(queries, keys, dtype=torch.bool, device=key_BSJ.device)
    return scores_BTS.masked_fill(~before.tril(keys - queries), -torch.inf)


def index_scores(q_BTIJ: Tensor, key_BSJ: Tensor, weight_BTI: Tensor) -> Tensor:
    """Compute `reference` block by block, without gradient; all of one dtype, fp32 or wider."""
    rows, queries, heads, width = q_BTIJ.shape
    keys = key_BSJ.shape[1]
    scores_BTS = q_BTIJ.new_full((rows, queries, keys), -torch.inf)
    key_BJS = key_BSJ.transpose(1, 2)
    for begin in range(0, queries, _BLOCK):
        end = min(begin + _BLOCK, queries)
        size, seen = end - begin, keys - queries + end
        q_BXJ = q_BTIJ[:, begin:end].reshape(rows, size * heads, width)
        match_BXS = torch.bmm(q_BXJ, key_BJS[:, :, :seen]).relu_()
        weight_X1I = weight_BTI[:, begin:end].reshape(rows * size, 1, heads)
        block_X1S = torch.bmm(weight_X1I, match_BXS.view(rows * size, heads, seen))
        scores_BTS[:, begin:end, :seen] = block_X1S.view(rows, size, seen)
        if size > 1:
            after = torch.ones(size, size, dtype=torch.bool, device=key_BSJ.device).triu(1)
            scores_BTS[:, begin:end, seen - size : seen].masked_fill_(after, -torch.inf)
    return scores_BTS
