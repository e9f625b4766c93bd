"""Which keys does each query keep? Index scores and the selection rule, a block of queries a time.

Nothing of the size of queries x keys exists for a whole sequence: a block is scored against the
keys that it can see, selects, and drops its scores; int32 indices of (B, T, K) remain. Source:
DeepSeek-V3.2 report, section 2.1, equation 2; the rule is that of `select_topk`.
"""

import torch
from torch import Tensor

from fivefold.ops import index_scores, select_topk
from fivefold.ops.index_scores import KeyScorer, QueryBlock, query_blocks


def reference(
    q_BTIJ: Tensor,
    key_BSJ: Tensor,
    weight_BTI: Tensor,
    k: int,
    documents_BS: Tensor | None = None,
) -> Tensor:
    """Select from whole scores; see `sparse_index`."""
    scores_BTS = index_scores.reference(q_BTIJ, key_BSJ, weight_BTI)
    if documents_BS is not None:
        own_BT1 = documents_BS[:, -q_BTIJ.shape[1] :, None]
        is_own_BTS = (own_BT1 == documents_BS[:, None]) & (own_BT1 >= 0)
        scores_BTS = scores_BTS.masked_fill(~is_own_BTS, -torch.inf)
    k = min(k, key_BSJ.shape[1])
    mask_BTS = select_topk.reference(scores_BTS, k)
    return select_topk.mask_to_indices(mask_BTS, k).int()


@torch.no_grad()
def sparse_index(
    q_BTIJ: Tensor,
    key_BSJ: Tensor,
    weight_BTI: Tensor,
    k: int,
    documents_BS: Tensor | None = None,
) -> Tensor:
    """Return the kept keys of each query, ascending, padded with -1: int32 of (B, T, min(k, S)).

    The queries stand at the last T of the S places. `documents_BS` names the document of each
    place, -1 for padding: a query chooses from its own document, padding chooses nothing. None:
    one document a row. Scores take the inputs' one dtype, fp32 or wider. No gradient.
    """
    rows, queries, _, _ = q_BTIJ.shape
    k = min(k, key_BSJ.shape[1])
    kept_BTK = torch.full((rows, queries, k), -1, dtype=torch.int32, device=q_BTIJ.device)
    scorer = KeyScorer(q_BTIJ)
    for block in query_blocks(queries, key_BSJ, 1, documents_BS):
        if block.seen - block.first <= k:
            chosen_BTK = _all_visible(block, kept_BTK)
        else:
            scores_BTS = scorer.scores(
                q_BTIJ[:, block.queries], key_BSJ[:, block.keys], weight_BTI[:, block.queries]
            )
            chosen_BTK = select_topk.select_topk(block.hide_(scores_BTS, -torch.inf), k)
        if block.first:
            chosen_BTK = torch.where(chosen_BTK < 0, chosen_BTK, chosen_BTK + block.first)
        kept_BTK[:, block.queries] = chosen_BTK
    return kept_BTK


def _all_visible(block: QueryBlock, kept_BTK: Tensor) -> Tensor:
    """Return every key that a query sees, for a block that sees no more than are kept."""
    rows, _, k = kept_BTK.shape
    shape = (rows, block.end - block.begin, block.seen - block.first)
    mask_BTS = torch.ones(shape, dtype=torch.bool, device=kept_BTK.device)
    return select_topk.mask_to_indices(block.hide_(mask_BTS, False), k)
