"""The indexer's scores: I[t, s] = sum_j w[t, j] relu(q[t, j] . k[s]) for keys not after the query.

Source: DeepSeek-V3.2 report, equation 1. Scored in blocks of queries, each against the keys that it
can see, so that the scores of single heads exist for one block at a time; multiplying the head axis
into the query axis keeps one matrix product a block (a product that broadcasts keys over queries
copies them: 12 times slower). `query_blocks` cuts the queries for everything that reads the scores:
whole scores here, the selection (`sparse_index`) and the indexer's loss (`index_loss`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fivefold.ops.workspace import Workspace, block_numbers, slices

_MOST_QUERIES = 128
"""Queries of a block at most on a CPU: a larger one scores more keys after the query in vain."""
_MOST_DEVICE_QUERIES = 1024
"""The same elsewhere, where what is in vain costs less than to start a block."""
_FEW_KEYS = 4096
"""Keys up to which scoring all of them costs less than to wait for a device to say which matter."""


@dataclass(frozen=True)
class QueryBlock:
    """Queries `begin` to `end`, and the keys `first` to `seen` that hold all they can see."""

    begin: int
    end: int
    first: int
    seen: int
    hidden_BTX: Tensor
    """What each query cannot see among the LAST keys of the block, the only ones to differ."""

    @property
    def queries(self) -> slice:
        """Places of the queries."""
        return slice(self.begin, self.end)

    @property
    def keys(self) -> slice:
        """Places of the keys."""
        return slice(self.first, self.seen)

    def hide_(self, scores_BTS: Tensor, value: float) -> Tensor:
        """Overwrite what cannot be seen in (B, T of the block, S of the block); returns it."""
        scores_BTS[..., -self.hidden_BTX.shape[-1] :].masked_fill_(self.hidden_BTX, value)
        return scores_BTS


def query_blocks(
    queries: int, key_BSJ: Tensor, heads: int, documents_BS: Tensor | None = None
) -> Iterator[QueryBlock]:
    """Cut the last `queries` of the places of `key_BSJ` into blocks with their keys.

    `heads` is how many numbers a pair of query and key needs. `documents_BS` names the document of
    each place, -1 for padding: a query sees its own document only, padding sees nothing and is
    seen by nothing. Blocks of padding alone are left out.
    """
    rows, keys, _ = key_BSJ.shape
    pairs = block_numbers(key_BSJ.device) // (rows * heads)
    most = _MOST_QUERIES if key_BSJ.is_cpu else _MOST_DEVICE_QUERIES
    begin = 0
    while begin < queries:
        before = keys - queries + begin
        # The largest size with size x (before + size) pairs.
        size = (math.isqrt(before * before + 4 * pairs) - before) // 2
        size = min(max(size, 1), most, queries - begin)
        seen = before + size
        after = torch.ones(1, size, size, dtype=torch.bool, device=key_BSJ.device).triu_(1)
        block = QueryBlock(begin, begin + size, 0, seen, after)
        if documents_BS is not None:
            block = _within_documents(block, documents_BS)
        if block.first < block.seen:
            yield block
        begin += size


def _within_documents(block: QueryBlock, documents_BS: Tensor) -> QueryBlock:
    """Hide other documents; drop many keys before the first that any query sees."""
    size, seen = block.end - block.begin, block.seen
    own_BT1 = documents_BS[:, seen - size : seen, None]
    hidden_BTS = (own_BT1 != documents_BS[:, None, :seen]) | (own_BT1 < 0)
    hidden_BTS[..., -size:] |= block.hidden_BTX
    if not documents_BS.is_cpu and seen <= _FEW_KEYS:
        return QueryBlock(block.begin, block.end, 0, seen, hidden_BTS)
    # A first key that is hidden from all or seen by some; without one, nothing is left.
    needed = (~hidden_BTS).flatten(0, 1).any(0).nonzero()
    first = int(needed[0]) if len(needed) else seen
    return QueryBlock(block.begin, block.end, first, seen, hidden_BTS[..., first:])


def match_keys(q_BTIJ: Tensor, key_BSJ: Tensor, workspace: Workspace) -> Tensor:
    """Return relu(q . k) of every head, (B, T, I, S), lent by the workspace."""
    rows, queries, heads, width = q_BTIJ.shape
    match_BXS = workspace.lend(rows, queries * heads, key_BSJ.shape[1])
    torch.bmm(q_BTIJ.reshape(rows, queries * heads, width), key_BSJ.mT, out=match_BXS)
    return match_BXS.relu_().view(rows, queries, heads, -1)


def weigh_heads(match_BTIS: Tensor, weight_BTI: Tensor, out_BTS: Tensor | None = None) -> Tensor:
    """Return the heads' weighted sum, (B, T, S); `out_BTS` is contiguous."""
    rows, queries, heads, keys = match_BTIS.shape
    weight_X1I = weight_BTI.reshape(rows * queries, 1, heads)
    out_X1S = None if out_BTS is None else out_BTS.view(rows * queries, 1, keys)
    result_X1S = torch.bmm(weight_X1I, match_BTIS.flatten(0, 1), out=out_X1S)
    return result_X1S.view(rows, queries, keys)


class KeyScorer:
    """Scores blocks of queries in memory of its own; a block overwrites the one before."""

    def __init__(self, like: Tensor) -> None:
        """Score tensors of the dtype and device of `like`."""
        self._matches, self._scores = Workspace(like), Workspace(like)

    def scores(self, q_BTIJ: Tensor, key_BSJ: Tensor, weight_BTI: Tensor) -> Tensor:
        """Return the scores of all pairs, (B, T, S); matches exist for a few queries at a time."""
        rows, queries, heads, _ = q_BTIJ.shape
        keys = key_BSJ.shape[1]
        scores_BTS = self._scores.lend(rows, queries, keys)
        # Half a block: the matches and what they add up to are in the cache together.
        size = max(block_numbers(q_BTIJ.device) // (2 * heads * keys), 1)
        for row in slices(0, rows, 1):
            for part in slices(0, queries, size):
                match_BTIS = match_keys(q_BTIJ[row, part], key_BSJ[row], self._matches)
                weigh_heads(match_BTIS, weight_BTI[row, part], scores_BTS[row, part])
        return scores_BTS


def reference(q_BTIJ: Tensor, key_BSJ: Tensor, weight_BTI: Tensor) -> Tensor:
    """Score every pair at once; -inf for keys after the query, which stands at key S - T + t."""
    match_BITS = torch.einsum("btij,bsj->bits", q_BTIJ, key_BSJ).relu()
    scores_BTS = torch.einsum("bits,bti->bts", match_BITS, weight_BTI)
    queries, keys = scores_BTS.shape[1:]
    before = torch.ones(queries, keys, dtype=torch.bool, device=key_BSJ.device)
    return scores_BTS.masked_fill(~before.tril(keys - queries), -torch.inf)


@torch.no_grad()
def index_scores(q_BTIJ: Tensor, key_BSJ: Tensor, weight_BTI: Tensor) -> Tensor:
    """Compute `reference` block by block, without gradient; all of one dtype, fp32 or wider."""
    rows, queries, _, _ = q_BTIJ.shape
    scores_BTS = q_BTIJ.new_full((rows, queries, key_BSJ.shape[1]), -torch.inf)
    scorer = KeyScorer(q_BTIJ)
    for block in query_blocks(queries, key_BSJ, 1):
        scores = scorer.scores(
            q_BTIJ[:, block.queries], key_BSJ[:, block.keys], weight_BTI[:, block.queries]
        )
        scores_BTS[:, block.queries, block.keys] = block.hide_(scores, -torch.inf)
    return scores_BTS
