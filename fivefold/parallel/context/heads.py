"""Context attention with some of the heads, where ranks along `cp` and `tp` share a row.

A rank runs the tokens of its place along `cp` with the heads of its place along `tp`. Latents and
index keys of those tokens are made alike by the tensor ranks, and each gathers them along `cp` from
the ranks that have its heads, so that all ranks select the same keys; the gradients that the heads
ask of the latents meet where the tensor ranks' inputs were gathered. The indexer learns from the
mean over all heads: each tensor rank takes its part of the queries, as in `tensor_attention`.
"""

import torch
from torch import Tensor

from fivefold.models.indexer import Selection
from fivefold.ops.index_loss import IndexLoss
from fivefold.parallel.context.attention import ContextAttention, ContextSurroundings, Parts
from fivefold.parallel.context.selection import loss_over_all_keys, runs_within
from fivefold.parallel.tensor_attention import HeadParallelAttention


class HeadContextAttention(ContextAttention, HeadParallelAttention):
    """MLA of one layer, this rank's heads for this rank's tokens."""

    def _index_loss(
        self,
        parts: Parts,
        around: ContextSurroundings,
        selection: Selection,
        shares_BTK: Tensor | None,
    ) -> IndexLoss:
        """Return the share of the tokens, the same on all tensor ranks."""
        if shares_BTK is not None:
            return self.loss_of_shares(selection, shares_BTK)
        q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC = parts
        loss = loss_over_all_keys(
            self.own_query(selection),
            self.axis.heads_to_queries(torch.cat([q_nope, q_rope], -1)),
            latent_BSC,
            rope_BSR,
            self.axis.stack(kv_b_HC),
            self.scale,
            around.documents_BT,
            runs_within(around.shard.runs, self.axis.part(q_nope.shape[1])),
            k=self.topk if around.probes else None,
        )
        return self.over_ranks(loss)
