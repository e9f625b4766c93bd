"""Lightning indexer: which keys does each query attend to?

A few small heads score every earlier token: I[t, s] = sum_j w[t, j] relu(q[t, j] . k[s]), and the
`index_topk` best survive, by the one selection rule of `ops.select_topk`. Sources: DeepSeek-V3.2
report, section 2.1, equations 1 and 2; GLM-5 report, section 2.1.1.

Surprises: the rotary channels come FIRST in an indexer head (in attention they come last); the
input is the same normalised query latent that the attention's queries are made of; scores can be
negative, because the head weights can. No gradient passes from the selection, and the inputs are
detached: language-model training never moves these weights, and their own loss nothing else. The
adaptation stage trains them against the attention's own distribution (`ops.index_loss`).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.models.config import ModelConfig
from fivefold.models.layer import LayerNorm, Linear
from fivefold.ops.index_loss import (
    IndexLoss,
    attention_keys,
    dense_index_loss,
    selected_index_loss,
)
from fivefold.ops.index_scores import index_scores
from fivefold.ops.rotary import rotate_halves, rotate_pairs
from fivefold.ops.select_topk import selection_mask
from fivefold.ops.sparse_index import sparse_index


class IndexQuery(NamedTuple):
    """What an indexer scores with, in fp32 or wider."""

    q_BTIJ: Tensor
    """Queries of the index heads."""
    key_BSJ: Tensor
    """Keys, those of the cache included."""
    weight_BTI: Tensor
    """Weights of the index heads, the constant factors of the score included."""


class Selection(NamedTuple):
    """The keys that each query keeps, in the form that its attention reads, and who chose them."""

    query: IndexQuery
    """For the loss of layers that share the selection."""
    mask_BTS: Tensor | None = None
    """Kept keys as bool; for masked attention."""
    places_BTK: Tensor | None = None
    """Kept keys as ascending places, -1 for none; for gathering attention."""


class Indexer(nn.Module):
    """Scores keys with `index_n_heads` heads of `index_head_dim` channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.index_n_heads is not None, "the config has no indexer"
        assert config.q_lora_rank is not None, "the indexer reads the query latent"
        self.heads = config.index_n_heads
        self.head_dim = config.index_head_dim
        self.rope_dim = config.qk_rope_head_dim
        self.rotate = rotate_pairs if config.indexer_rope_interleave else rotate_halves
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.head_dim)
        self.wk = Linear(config.hidden_size, self.head_dim)
        self.k_norm = LayerNorm(self.head_dim, eps=1e-6)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    def keys(self, x_BTD: Tensor, turn_BTR: Tensor) -> Tensor:
        """Return the index keys (B, T, J) that later queries score."""
        key_BT1J = self.k_norm(self.wk(x_BTD.detach()))[:, :, None]
        return self._turn(key_BT1J, turn_BTR)[:, :, 0]

    def query(
        self, x_BTD: Tensor, q_latent_BTC: Tensor, turn_BTR: Tensor, key_BSJ: Tensor
    ) -> IndexQuery:
        """Return what scores the keys `key_BSJ` for the queries of `x_BTD`."""
        rows, queries, _ = x_BTD.shape
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        q_BTIJ = self.wq_b(q_latent_BTC.detach()).view(rows, queries, self.heads, self.head_dim)
        q_BTIJ = self._turn(q_BTIJ, turn_BTR).to(wide)
        weight = self.weights_proj.weight.to(wide)
        weight_BTI = nn.functional.linear(x_BTD.detach().to(wide), weight)
        weight_BTI = weight_BTI * (self.heads * self.head_dim) ** -0.5
        return IndexQuery(q_BTIJ, key_BSJ.to(wide), weight_BTI)

    def _turn(self, x_BTHJ: Tensor, turn_BTR: Tensor) -> Tensor:
        rope, rest = x_BTHJ.split([self.rope_dim, self.head_dim - self.rope_dim], dim=-1)
        return torch.cat([self.rotate(rope, turn_BTR), rest], dim=-1)


@torch.no_grad()
def select_mask(query: IndexQuery, k: int, visible_BTS: Tensor | None) -> Selection:
    """Mark the kept keys; `visible_BTS` narrows causality further (documents of a packed row)."""
    q_BTIJ, key_BSJ, weight_BTI = query
    queries, keys = q_BTIJ.shape[1], key_BSJ.shape[1]
    places = torch.arange(keys, device=key_BSJ.device)
    before_TS = places <= places[keys - queries :, None]
    mask_BTS = (before_TS if visible_BTS is None else visible_BTS).expand(len(q_BTIJ), -1, -1)
    # The first k places see k keys at most and keep them all; only the others need scores.
    few = min(max(k - (keys - queries), 0), queries)
    scores_BTS = index_scores(q_BTIJ[:, few:], key_BSJ, weight_BTI[:, few:])
    if visible_BTS is not None:
        scores_BTS.masked_fill_(~visible_BTS[:, few:], -torch.inf)
    return Selection(
        query, mask_BTS=torch.cat([mask_BTS[:, :few], selection_mask(scores_BTS, k)], 1)
    )


class Kept:
    """The places that a block's first forward has selected, for its recomputation."""

    places_BTK: Tensor | None = None


def select_places(
    query: IndexQuery, k: int, documents_BS: Tensor | None, kept: Kept | None = None
) -> Selection:
    """List the kept keys; nothing of the size of queries x keys exists on the way.

    What `kept` holds is not selected again; what it lacks it is given.
    """
    places_BTK = None if kept is None else kept.places_BTK
    if places_BTK is None:
        places_BTK = sparse_index(*query, k, documents_BS)
    if kept is not None:
        kept.places_BTK = places_BTK
    return Selection(query, places_BTK=places_BTK)


def loss_over_all_keys(
    query: IndexQuery,
    q_BTHQ: Tensor,
    latent_BSC: Tensor,
    rope_BSR: Tensor,
    kv_b_HC: Tensor,
    scale: float,
    documents_BS: Tensor | None,
    *,
    k: int | None,
) -> IndexLoss:
    """Compare with the attention over all visible keys; `k` asks for the mass of k keys."""
    nope = q_BTHQ.shape[-1] - rope_BSR.shape[-1]
    k_BSHQ = attention_keys(latent_BSC.detach(), rope_BSR.detach(), kv_b_HC.detach(), nope)
    return dense_index_loss(*query, q_BTHQ.detach(), k_BSHQ, scale, documents_BS, k=k)


def loss_over_selected_keys(selection: Selection, shares_BTK: Tensor) -> IndexLoss:
    """Compare with the sparse attention's probabilities of the selected keys."""
    assert selection.places_BTK is not None, "learning on the selected keys needs their places"
    return selected_index_loss(*selection.query, selection.places_BTK, shares_BTK)
