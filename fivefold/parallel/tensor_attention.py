"""Latent attention with some of the heads, and the indexer's loss over all of them.

Latent projections, their norms and the indexer run on every tensor rank alike, on the whole
sequence, so that all ranks select the same keys; up-projections and the output projection hold a
run of heads. What the indexer learns from is the mean over ALL heads: over selected keys the ranks'
means are averaged; over all keys each rank takes its own queries with all heads. Either way a rank
computes the loss of its own queries, and the ranks' sum is the loss of all.
"""

import torch
from torch import Tensor

from fivefold.models.indexer import (
    IndexQuery,
    Selection,
    loss_over_all_keys,
    loss_over_selected_keys,
)
from fivefold.models.layer import Linear
from fivefold.models.mla import LatentAttention
from fivefold.models.surroundings import Surroundings
from fivefold.ops.index_loss import AttentionMass, IndexLoss
from fivefold.ops.product import linear
from fivefold.ops.sparse_attention import attend_gathered_with_shares
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.sequence import TensorAxis

Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class HeadParallelAttention(LatentAttention):
    """This rank's heads; `heads` counts them."""

    axis: TensorAxis

    def _attend(
        self, parts: Parts, around: Surroundings, selection: Selection | None
    ) -> tuple[Tensor, IndexLoss | None]:
        if selection is None or not around.index_learns:
            return super()._attend(parts, around, selection)
        places_BTK = selection.places_BTK
        if places_BTK is not None:
            out_BTHV, shares_BTK = attend_gathered_with_shares(*parts, places_BTK, self.scale)
            return out_BTHV, self.loss_of_shares(selection, shares_BTK)
        # Nothing was selected: attention is dense, as without an indexer.
        out_BTHV, _ = super()._attend(parts, around, None)
        q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC = parts
        query = self.own_query(selection)
        seen = slice(0, self.axis.part(q_nope.shape[1]).stop)
        documents_BT = around.documents_BT
        loss = loss_over_all_keys(
            query._replace(key_BSJ=query.key_BSJ[:, seen]),
            self.axis.heads_to_queries(torch.cat([q_nope, q_rope], -1)),
            latent_BSC[:, seen],
            rope_BSR[:, seen],
            self.axis.stack(kv_b_HC),
            self.scale,
            None if documents_BT is None else documents_BT[:, seen],
            k=self.topk if around.probes else None,
        )
        return out_BTHV, self.over_ranks(loss)

    def loss_of_shares(self, selection: Selection, shares_BTK: Tensor) -> IndexLoss:
        """Return the loss over selected keys from the mean over this rank's heads."""
        places_BTK = selection.places_BTK
        assert places_BTK is not None, "shares are of selected keys"
        own = self.axis.part(places_BTK.shape[1])
        shares_BTK = all_reduce(shares_BTK / self.axis.size, self.axis.group)
        mine = Selection(self.own_query(selection), places_BTK=places_BTK[:, own])
        return self.over_ranks(loss_over_selected_keys(mine, shares_BTK[:, own]))

    def own_query(self, selection: Selection) -> IndexQuery:
        """Return what scores the keys for this rank's part of the queries."""
        q_BTIJ, key_BSJ, weight_BTI = selection.query
        own = self.axis.part(q_BTIJ.shape[1])
        return IndexQuery(q_BTIJ[:, own], key_BSJ, weight_BTI[:, own])

    def over_ranks(self, loss: IndexLoss) -> IndexLoss:
        """Add up the ranks' queries; the gradient stays this rank's."""
        group = self.axis.group
        mass = loss.mass
        if mass is not None:
            mass = AttentionMass(*all_reduce(torch.stack(list(mass)), group))
        return IndexLoss(self.axis.sum_alike(loss.total), all_reduce(loss.queries, group), mass)


class PartialLinear(Linear):
    """A projection of some inputs, whose outputs are partial sums; one rank adds the bias."""

    adds_bias: bool

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        return linear(x, self.weight, self.bias if self.adds_bias else None)
