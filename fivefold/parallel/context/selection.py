"""What a rank's queries keep, and what its indexers learn, over the keys of all ranks.

The ops put T queries at the last T of S places. A run of queries is that, once the keys after its
end are cut off; so the run is the unit here, and keys keep their places in the row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.models.indexer import IndexQuery, Kept, Selection, select_mask
from fivefold.models.surroundings import Surroundings
from fivefold.ops.index_loss import AttentionMass, IndexLoss, attention_keys, dense_index_loss
from fivefold.ops.sparse_index import sparse_index
from fivefold.parallel.context.assignment import Run
from fivefold.parallel.context.shard import TokenShard


def select(
    query: IndexQuery, around: Surroundings, shard: TokenShard, topk: int, kept: Kept | None
) -> Selection:
    """Select for the rank's queries; rules and forms are those of `LatentAttention`.

    The places of a selection count over all rows, row x T + place; so do the keys of its query.
    """
    if around.is_dense or not around.narrows(topk):
        return Selection(query)
    if around.gathers(topk):
        places_BTK = None if kept is None else kept.places_BTK
        if places_BTK is None:
            places_BTK = _select_places(query, around, shard, topk)
        if kept is not None:
            kept.places_BTK = places_BTK
        flat = query._replace(key_BSJ=query.key_BSJ.flatten(0, 1)[None])
        return Selection(flat, places_BTK=places_BTK)
    masks = []
    for run, own in own_slices(shard.runs):
        visible_BTS = around.visible_BTS
        if visible_BTS is not None:
            visible_BTS = visible_BTS[run.row, None, run.begin : run.end, : run.end]
        chosen = select_mask(_of_run(query, run, own), topk, visible_BTS)
        assert chosen.mask_BTS is not None, "`select_mask` makes a mask"
        masks.append(F.pad(chosen.mask_BTS, (0, shard.tokens - run.end)))
    return Selection(query, mask_BTS=torch.cat(masks, dim=1))


def loss_over_all_keys(
    query: IndexQuery,
    q_BTHQ: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    scale: float,
    documents_BT: Tensor | None,
    runs: list[Run],
    *,
    k: int | None,
) -> IndexLoss:
    """Sum the loss of the queries of `runs`; see `models.indexer.loss_over_all_keys`."""
    q_BTHQ, kv_b_HC = q_BTHQ.detach(), kv_b_HC.detach()
    losses: list[IndexLoss] = []
    row, k_BSHQ = -1, q_BTHQ
    for run, own in own_slices(runs):
        if run.row != row:
            row = run.row
            end = max(other.end for other in runs if other.row == row)
            keys = latent_BSC[row, None, :end].detach(), rope_BSR[row, None, :end].detach()
            k_BSHQ = attention_keys(*keys, kv_b_HC, q_BTHQ.shape[-1] - rope_BSR.shape[-1])
        documents_BS = None if documents_BT is None else documents_BT[row, None, : run.end]
        losses.append(
            dense_index_loss(
                *_of_run(query, run, own),
                q_BTHQ[:, own],
                k_BSHQ[:, : run.end],
                scale,
                documents_BS,
                k=k,
            )
        )
    mass = None
    if k is not None:
        columns = zip(*(loss.mass for loss in losses if loss.mass is not None), strict=True)
        mass = AttentionMass(*(torch.stack(column).sum(0) for column in columns))
    return IndexLoss(
        torch.stack([loss.total for loss in losses]).sum(),
        torch.stack([loss.queries for loss in losses]).sum(),
        mass,
    )


def own_slices(runs: list[Run]) -> Iterator[tuple[Run, slice]]:
    """Yield each run with the places of its tokens among those of all."""
    done = 0
    for run in runs:
        yield run, slice(done, done + run.end - run.begin)
        done += run.end - run.begin


def runs_within(runs: list[Run], part: slice) -> list[Run]:
    """Return the runs of a part of their tokens."""
    found = []
    for run, own in own_slices(runs):
        begin, end = max(own.start, part.start), min(own.stop, part.stop)
        if begin < end:
            found.append(Run(run.row, run.begin + begin - own.start, run.begin + end - own.start))
    return found


def _select_places(query: IndexQuery, around: Surroundings, shard: TokenShard, topk: int) -> Tensor:
    """List the kept keys of each query, int32 (1, N, min(topk, T))."""
    most = min(topk, shard.tokens)
    chosen = []
    for run, own in own_slices(shard.runs):
        documents_BS = around.documents_BT
        if documents_BS is not None:
            documents_BS = documents_BS[run.row, None, : run.end]
        places_BTK = sparse_index(*_of_run(query, run, own), topk, documents_BS)
        begin = run.row * shard.tokens
        places_BTK = torch.where(places_BTK < 0, places_BTK, places_BTK + begin)
        chosen.append(F.pad(places_BTK, (0, most - places_BTK.shape[-1]), value=-1))
    return torch.cat(chosen, dim=1)


def _of_run(query: IndexQuery, run: Run, own: slice) -> IndexQuery:
    return IndexQuery(
        query.q_BTIJ[:, own], query.key_BSJ[run.row, None, : run.end], query.weight_BTI[:, own]
    )
