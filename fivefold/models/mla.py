"""Multi-head latent attention with sparse selection (MLA + DSA).

Queries and key-values pass through low-rank latents; the cache keeps the key-value latent and one
rotated key for all heads. Which keys a query sees is the causal and document mask, narrowed by the
indexer once a query sees more than `index_topk`: up to there sparse and dense are the same
function. Three forms compute it: expanded heads (training, prefill), absorbed over the latent
(decode), and absorbed over gathered keys, which alone costs what is selected. Sources: DeepSeek-V2
report, section 2.1; DeepSeek-V3.2 report, section 2.1.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.models.config import ModelConfig
from fivefold.models.indexer import (
    Indexer,
    IndexQuery,
    Kept,
    Selection,
    loss_over_all_keys,
    loss_over_selected_keys,
    select_mask,
    select_places,
)
from fivefold.models.layer import Linear, RMSNorm
from fivefold.models.surroundings import Attend, Surroundings
from fivefold.ops.attention import attend_absorbed, attend_documents, attend_expanded
from fivefold.ops.index_loss import IndexLoss
from fivefold.ops.rotary import rotate_halves, rotate_pairs, yarn_scale
from fivefold.ops.sparse_attention import attend_gathered, attend_gathered_with_shares


class Attended(NamedTuple):
    """Result of one layer's attention."""

    y_BTD: Tensor
    """The output."""
    selection: Selection | None
    """What a `shared` layer above may reuse; None where nothing was narrowed."""
    index_loss: IndexLoss | None
    """What the indexer has to learn; None unless it learns."""


class LatentAttention(nn.Module):
    """MLA of one layer; `layer` is its index in the cache."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None, "latent attention needs `kv_lora_rank`"
        self.layer = layer
        self.heads = config.num_attention_heads
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.latent = config.kv_lora_rank
        self.topk = config.index_topk
        self.rotate = rotate_pairs if config.rope_interleave else rotate_halves
        self.scale = _softmax_scale(config)
        bias, eps = config.attention_bias, config.fivefold.lora_norm_eps
        heads_width = self.heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, heads_width)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
            self.q_b_proj = Linear(config.q_lora_rank, heads_width)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.latent + self.rope, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.latent, eps)
        self.kv_b_proj = Linear(self.latent, self.heads * (self.nope + config.v_head_dim))
        self.o_proj = Linear(self.heads * config.v_head_dim, config.hidden_size, bias=bias)
        full = config.has_indexer and config.indexer_type(layer) == "full"
        self.indexer = Indexer(config) if full else None
        self.selects = config.has_indexer

    def forward(
        self,
        x_BTD: Tensor,
        around: Surroundings,
        below: Selection | None,
        kept: Kept | None = None,
    ) -> Attended:
        """Attend from (B, T, D); `below` is the selection of the layer below.

        `kept` carries the selection of a first forward to its recomputation.
        """
        if around.attend is not None:
            return Attended(self._attend_elsewhere(x_BTD, around, around.attend), None, None)
        rows, queries, _ = x_BTD.shape
        q_latent_BTC, q_nope, q_rope = self._queries(x_BTD, around.turn_BTR)
        latent_BSC, rope_BSR = self._keys(x_BTD, around.turn_BTR)
        index_BSJ = self._index_keys(x_BTD, around)
        if around.cache is not None:
            latent_BSC, rope_BSR, index_BSJ = around.cache.append(
                self.layer, latent_BSC, rope_BSR, index_BSJ
            )
        selection = below
        if self.indexer is not None and index_BSJ is not None and self._needs_index(around):
            assert q_latent_BTC is not None, "the indexer reads the query latent"
            with torch.set_grad_enabled(torch.is_grad_enabled() and around.index_learns):
                query = self.indexer.query(x_BTD, q_latent_BTC, around.turn_BTR, index_BSJ)
            selection = self._select(query, around, kept)
        kv_b_HC = self.kv_b_proj.weight.view(self.heads, -1, self.latent)
        parts = q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC
        out_BTHV, index_loss = self._attend(parts, around, selection)
        return Attended(self.o_proj(out_BTHV.reshape(rows, queries, -1)), selection, index_loss)

    def _attend_elsewhere(self, x_BTD: Tensor, around: Surroundings, attend: Attend) -> Tensor:
        """Hand everything that attention needs to the surroundings' own."""
        q_latent_BTC, q_nope, q_rope = self._queries(x_BTD, around.turn_BTR)
        query = None
        if self.indexer is not None:
            assert q_latent_BTC is not None, "the indexer reads the query latent"
            with torch.no_grad():
                key_BTJ = self.indexer.keys(x_BTD, around.turn_BTR)
                query = self.indexer.query(x_BTD, q_latent_BTC, around.turn_BTR, key_BTJ)
        kv_b_HC = self.kv_b_proj.weight.view(self.heads, -1, self.latent)
        parts = q_nope, q_rope, *self._keys(x_BTD, around.turn_BTR), kv_b_HC
        out_BTHV = attend(self.layer, parts, self.scale, query, self.topk)
        return self.o_proj(out_BTHV.flatten(2))

    def _queries(self, x_BTD: Tensor, turn_BTR: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        rows, queries, _ = x_BTD.shape
        q_latent_BTC = None
        if hasattr(self, "q_proj"):
            q_BTX = self.q_proj(x_BTD)
        else:
            q_latent_BTC = self.q_a_layernorm(self.q_a_proj(x_BTD))
            q_BTX = self.q_b_proj(q_latent_BTC)
        q_BTHQ = q_BTX.view(rows, queries, self.heads, self.nope + self.rope)
        q_nope, q_rope = q_BTHQ.split([self.nope, self.rope], dim=-1)
        return q_latent_BTC, q_nope, self.rotate(q_rope, turn_BTR)

    def _keys(self, x_BTD: Tensor, turn_BTR: Tensor) -> tuple[Tensor, Tensor]:
        latent_BSC, rope_BSR = self.kv_a_proj_with_mqa(x_BTD).split([self.latent, self.rope], -1)
        turned_BS1R = self.rotate(rope_BSR[:, :, None], turn_BTR)
        return self.kv_a_layernorm(latent_BSC), turned_BS1R[:, :, 0]

    def _needs_index(self, around: Surroundings) -> bool:
        """Does anybody look at the scores? Not where every key is kept and nothing is learned."""
        return self.selects and (around.narrows(self.topk) or around.index_learns)

    def _index_keys(self, x_BTD: Tensor, around: Surroundings) -> Tensor | None:
        if self.indexer is None or not (self._needs_index(around) or around.cache is not None):
            return None
        with torch.set_grad_enabled(torch.is_grad_enabled() and around.index_learns):
            return self.indexer.keys(x_BTD, around.turn_BTR)

    def _select(self, query: IndexQuery, around: Surroundings, kept: Kept | None) -> Selection:
        if around.is_dense or not around.narrows(self.topk):
            return Selection(query)
        if around.gathers(self.topk):
            return select_places(query, self.topk, around.documents_BT, kept)
        return select_mask(query, self.topk, around.visible_BTS)

    def _attend(
        self,
        parts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        around: Surroundings,
        selection: Selection | None,
    ) -> tuple[Tensor, IndexLoss | None]:
        """Attend in the form that the selection and the surroundings ask for."""
        if selection is not None and selection.places_BTK is not None:
            if not around.index_learns:
                return attend_gathered(*parts, selection.places_BTK, self.scale), None
            out_BTHV, shares = attend_gathered_with_shares(*parts, selection.places_BTK, self.scale)
            return out_BTHV, loss_over_selected_keys(selection, shares)
        mask_BTS = around.visible_BTS if selection is None else selection.mask_BTS
        if selection is not None and mask_BTS is None:
            mask_BTS = around.visible_BTS
        if around.absorbed:
            out_BTHV = attend_absorbed(*parts, mask_BTS, self.scale)
        elif mask_BTS is None and around.segments is not None:
            out_BTHV = attend_documents(*parts, around.segments, self.scale)
        else:
            out_BTHV = attend_expanded(*parts, mask_BTS, self.scale)
        if selection is None or not around.index_learns:
            return out_BTHV, None
        q_nope, q_rope, latent, rope, kv_b = parts
        loss = loss_over_all_keys(
            selection.query,
            torch.cat([q_nope, q_rope], -1),
            latent,
            rope,
            kv_b,
            self.scale,
            around.documents_BT,
            k=self.topk if around.probes else None,
        )
        return out_BTHV, loss


def _softmax_scale(config: ModelConfig) -> float:
    scale = config.qk_head_dim**-0.5
    parameters = config.rope_parameters
    if parameters.get("rope_type", "default") != "default" and parameters.get("mscale_all_dim"):
        scale *= yarn_scale(float(parameters["factor"]), float(parameters["mscale_all_dim"])) ** 2
    return scale
