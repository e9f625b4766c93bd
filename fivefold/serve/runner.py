"""The forward of one step, on the model's own weights and a few derived from them.

`FusedRunner` is the fast path: the layers written out over flat tokens, every product as large as
it can be, nothing made twice. It computes what `models.transformer` computes, with absorbed
attention throughout; routers are the model's own modules. `StableRunner`
(`stable_runner`) runs the modules themselves, and is slower and independent of the batch.

Shapes: T tokens of the step; see `attend` for the rest.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.models.transformer import Block, Transformer
from fivefold.ops.product import Packed
from fivefold.ops.rotary import rotary_angles, rotate_pairs
from fivefold.serve.attend import IndexQueries, Picked, attend_chunk, attend_decoded
from fivefold.serve.batch import KeyMap
from fivefold.serve.feed import FusedFeed
from fivefold.serve.fused import FusedAttention, Norm, fuse_attention
from fivefold.serve.pool import CachePool, CacheRow


class Forward(NamedTuple):
    """Result of one step."""

    hidden_TD: Tensor
    """Normalised hidden states."""
    routing: list[Tensor]
    """Chosen experts (T, A) of each MoE layer, bottom first."""


class Runner(Protocol):
    """What the engine needs of a model."""

    most_decoded: int
    """Tokens of one request up to which each is a query row of its own."""

    def refresh(self) -> None:
        """Take over changed weights: after any update, in place or not, before the next step.

        What is derived from them is partly copied and partly shared, so that a step without it
        would compute with a mixture of two versions.
        """
        ...

    def forward(self, ids_T: Tensor, keys: KeyMap) -> Forward:
        """Run the main stack and leave the keys in the pool."""
        ...

    def draft(self, hidden_TD: Tensor, next_T: Tensor, keys: KeyMap) -> Tensor:
        """Run the MTP layer on states and the tokens after them; returns its states (T, D)."""
        ...

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Project hidden states onto the vocabulary, fp32."""
        ...


class _Layer(NamedTuple):
    block: Block
    attention: FusedAttention
    feed_norm: Norm
    feed: FusedFeed
    cache: CacheRow


class FusedRunner:
    """Few operators a layer; results agree with the model to rounding."""

    most_decoded = 4
    """More rows gather the same keys more often than they save calls."""

    def __init__(self, model: Transformer, pool: CachePool) -> None:
        """Run `model` with its keys in `pool`."""
        self._model, self._pool = model, pool
        self._layers: list[_Layer] = []
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Derive the fused weights again."""
        model, config = self._model, self._model.config
        modules = [*model.layers, *([] if model.mtp is None else [model.mtp.block])]
        blocks = [block for block in modules if isinstance(block, Block)]
        self._layers = [
            _Layer(
                block,
                fuse_attention(block.input_layernorm, block.self_attn, config),
                Norm(block.post_attention_layernorm),
                FusedFeed(block.mlp),
                cache,
            )
            for block, cache in zip(blocks, self._pool.layers, strict=False)
        ]
        self._out_norm, self._head = Norm(model.norm), Packed(model.lm_head.weight)
        if model.mtp is not None:
            mtp = model.mtp
            self._mtp_norms = Norm(mtp.enorm), Norm(mtp.hnorm), Norm(mtp.shared_head_norm)
        self._rope = config.qk_rope_head_dim
        self._heads = config.num_attention_heads
        self._topk = config.index_topk if config.has_indexer else 2**62

    @torch.inference_mode()
    def forward(self, ids_T: Tensor, keys: KeyMap) -> Forward:
        """See `Runner`."""
        model = self._model
        turn_T1R = self._turn(keys)
        x_TD = F.embedding(ids_T, model.embed_tokens.weight)
        picked: list[Picked | None] = [None] * (len(keys.chunks) + 1)
        routing: list[Tensor] = []
        for layer in self._layers[: len(model.layers)]:
            x_TD, chosen_TA = self._run_layer(layer, x_TD, turn_T1R, keys, picked)
            routing += [] if chosen_TA is None else [chosen_TA]
        return Forward(self._out_norm(x_TD), routing)

    @torch.inference_mode()
    def draft(self, hidden_TD: Tensor, next_T: Tensor, keys: KeyMap) -> Tensor:
        """See `Runner`."""
        mtp = self._model.mtp
        assert mtp is not None, "drafting needs the MTP layer"
        embedded_TD = F.embedding(next_T, self._model.embed_tokens.weight)
        of_embedded, of_hidden, of_head = self._mtp_norms
        joined = torch.cat([of_embedded(embedded_TD), of_hidden(hidden_TD)], -1)
        x_TD = mtp.eh_proj(joined).to(embedded_TD.dtype)
        picked: list[Picked | None] = [None] * (len(keys.chunks) + 1)
        x_TD, _ = self._run_layer(self._layers[-1], x_TD, self._turn(keys), keys, picked)
        return of_head(x_TD)

    @torch.inference_mode()
    def logits(self, hidden_MD: Tensor) -> Tensor:
        """See `Runner`."""
        logits_MW = self._head.linear(hidden_MD)
        return logits_MW if logits_MW.dtype == torch.float64 else logits_MW.float()

    def _turn(self, keys: KeyMap) -> Tensor:
        model = self._model
        return rotary_angles(keys.position_T, model.speeds_R, model.rotary_factor)[:, None]

    def _run_layer(
        self,
        layer: _Layer,
        x_TD: Tensor,
        turn_T1R: Tensor,
        keys: KeyMap,
        picked: list[Picked | None],
    ) -> tuple[Tensor, Tensor | None]:
        """Pass (T, D) through one block; returns it and the chosen experts."""
        fused = layer.attention
        q_THX, index = self._project(layer, x_TD, turn_T1R, keys)
        context_TY = self._attend(q_THX, layer.cache, keys, index, picked).flatten(1)
        x_TD = x_TD + fused.out_DY.linear(context_TY, fused.out_bias_D)
        normed_TD = layer.feed_norm(x_TD)
        out_TD, chosen_TA = layer.feed(normed_TD)
        return x_TD + out_TD, chosen_TA

    def _project(
        self, layer: _Layer, x_TD: Tensor, turn_T1R: Tensor, keys: KeyMap
    ) -> tuple[Tensor, IndexQueries | None]:
        """Write the keys of the new tokens; return absorbed queries and what the indexer needs."""
        fused, attention, rope = layer.attention, layer.block.self_attn, self._rope
        normed_TD = fused.in_norm(x_TD)
        both = fused.in_YD.linear(normed_TD, fused.in_bias_Y).split(fused.in_widths, -1)
        key_TX, index_key_TJ, q_TY, index_weight_TI, _ = both
        latent_TC = fused.latent_norm(key_TX[:, rope:])
        _turn_(key_TX[:, None, :rope], turn_T1R)
        row_TX = torch.cat([key_TX[:, :rope], latent_TC], -1)
        layer.cache.latent_SX.index_copy_(0, keys.slot_T, row_TX)
        if fused.latent_queries is not None:
            q_TY = fused.latent_queries(q_TY)
        tokens, width = row_TX.shape
        q_THX = q_TY[:, : self._heads * width].view(tokens, self._heads, width)
        _turn_(q_THX[..., :rope], turn_T1R)
        if attention.indexer is None or layer.cache.index_SJ is None:
            return q_THX, None
        assert fused.index_norm is not None, "an indexer norms its keys"
        wide = torch.float32
        gain, bias = (each.to(wide) for each in fused.index_norm)
        index_key_TJ = F.layer_norm(index_key_TJ.to(wide), gain.shape, gain, bias, 1e-6)
        _turn_(index_key_TJ[:, None, :rope], turn_T1R)
        layer.cache.index_SJ.index_copy_(0, keys.slot_T, index_key_TJ.to(row_TX.dtype))
        if not self._selects(keys):
            return q_THX, None
        index_q = q_TY[:, self._heads * width :]
        index_q_TIJ = index_q.view(tokens, attention.indexer.heads, -1)
        _turn_(index_q_TIJ[..., :rope], turn_T1R)
        if fused.index_weight_ID is not None:
            index_weight_TI = F.linear(normed_TD.to(wide), fused.index_weight_ID)
        return q_THX, IndexQueries(index_q_TIJ.to(wide), index_weight_TI)

    def _selects(self, keys: KeyMap) -> bool:
        """Has any query more keys than are kept?"""
        most = max((len(chunk.slot_S) for chunk in keys.chunks), default=0)
        if keys.decoded is not None:
            most = max(most, keys.decoded.slot_PS.shape[1])
        return most > self._topk

    def _attend(
        self,
        q_THX: Tensor,
        cache: CacheRow,
        keys: KeyMap,
        index: IndexQueries | None,
        picked: list[Picked | None],
    ) -> Tensor:
        """Attend decoded rows and chunks; `picked` hands selections on to the layers above."""
        decoded, sizes = keys.decoded, {"topk": self._topk, "rope": self._rope}
        if decoded is not None and decoded.place_P is None:
            out, picked[-1] = attend_decoded(q_THX, cache, decoded, index, picked[-1], **sizes)
            return out
        out = q_THX.new_empty(*q_THX.shape[:2], q_THX.shape[2] - self._rope)
        if decoded is not None:
            place = decoded.place_P
            own = None if index is None else IndexQueries(*(each[place] for each in index))
            out[place], picked[-1] = attend_decoded(
                q_THX[place], cache, decoded, own, picked[-1], **sizes
            )
        for i, chunk in enumerate(keys.chunks):
            own = None if index is None else IndexQueries(*(each[chunk.places] for each in index))
            out[chunk.places], picked[i] = attend_chunk(
                q_THX[chunk.places], cache, chunk, own, picked[i], **sizes
            )
        return out


def _turn_(x_THR: Tensor, turn_T1R: Tensor) -> None:
    """Rotate neighbouring channels in place."""
    if x_THR.dtype == torch.float32:
        torch.view_as_complex(x_THR.unflatten(-1, (-1, 2))).mul_(turn_T1R)
    else:
        x_THR.copy_(rotate_pairs(x_THR[None], turn_T1R[None, :, 0])[0])
