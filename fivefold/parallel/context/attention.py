"""Latent attention of a rank's tokens over the keys of all ranks' tokens.

`latents` form: queries stay, and latents, rotated keys and index keys come from all ranks, C + R +
J numbers a token; every rank then projects the keys that its queries see. `heads` form: the
latents come too, but queries are given away for heads, each rank attends with its own heads for all
tokens, and outputs go back; no key is projected twice. The report sends keys and values like
queries; their latent is less to send on fewer than H (N + R + V) / (C + R) ranks, 57 at GLM-5's
shape. Source: GLM-5 report, section 2.4.

Selection is by place in the row, so that ties fall as in one process whatever rank holds a key.
`ContextAttention` is `LatentAttention` with another forward under `ContextSurroundings` and the
same under others.
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fivefold.models.indexer import Kept, Selection, loss_over_selected_keys
from fivefold.models.mla import Attended, LatentAttention
from fivefold.models.surroundings import Surroundings
from fivefold.ops.attention import attend_documents, attend_expanded
from fivefold.ops.index_loss import IndexLoss
from fivefold.ops.sparse_attention import attend_gathered, attend_gathered_with_shares
from fivefold.parallel.context.pieces import DocumentPart, attend_parts
from fivefold.parallel.context.selection import loss_over_all_keys, own_slices, select
from fivefold.parallel.context.shard import TokenShard

Form = Literal["latents", "heads"]
"""What travels for attention beside the latents: nothing, or queries and outputs."""

Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Queries without and with position, latents, rotated keys and the up-projection."""


@dataclass(frozen=True)
class ContextSurroundings(Surroundings):
    """Surroundings of the whole rows, but for `turn_BTR`, which is of the rank's tokens, (1, N)."""

    shard: TokenShard = field(kw_only=True)
    """The rank's tokens."""
    parts: list[DocumentPart] = field(kw_only=True)
    """Their documents."""
    form: Form = field(kw_only=True)
    """How attention runs."""


class ContextAttention(LatentAttention):
    """MLA of one layer over ranks that share the tokens."""

    def forward(
        self,
        x_BTD: Tensor,
        around: Surroundings,
        below: Selection | None,
        kept: Kept | None = None,
    ) -> Attended:
        """Attend from this rank's (1, N, D); see `LatentAttention`."""
        if not isinstance(around, ContextSurroundings):
            return super().forward(x_BTD, around, below, kept)
        q_latent_BTC, q_nope, q_rope = self._queries(x_BTD, around.turn_BTR)
        own = [*self._keys(x_BTD, around.turn_BTR)]
        index_BTJ = self._index_keys(x_BTD, around)
        own += [] if index_BTJ is None else [index_BTJ]
        keys_BSX = around.shard.gather(torch.cat(own, -1))
        latent_BSC, rope_BSR, *rest = keys_BSX.split([key.shape[-1] for key in own], -1)
        selection = below
        if self.indexer is not None and rest:
            assert q_latent_BTC is not None, "the indexer reads the query latent"
            with torch.set_grad_enabled(torch.is_grad_enabled() and around.index_learns):
                query = self.indexer.query(x_BTD, q_latent_BTC, around.turn_BTR, rest[0])
            selection = select(query, around, around.shard, self.topk, kept)
        kv_b_HC = self.kv_b_proj.weight.view(self.heads, -1, self.latent)
        parts = q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC
        attend = self._attend_heads if around.form == "heads" else self._attend_latents
        out_BTHV, shares_BTK = attend(parts, around, selection)
        index_loss = None
        if selection is not None and around.index_learns:
            index_loss = self._index_loss(parts, around, selection, shares_BTK)
        return Attended(self.o_proj(out_BTHV.flatten(2)), selection, index_loss)

    def _index_loss(
        self,
        parts: Parts,
        around: ContextSurroundings,
        selection: Selection,
        shares_BTK: Tensor | None,
    ) -> IndexLoss:
        """Return the share of the rank's queries."""
        if shares_BTK is not None:
            return loss_over_selected_keys(selection, shares_BTK)
        q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC = parts
        return loss_over_all_keys(
            selection.query,
            torch.cat([q_nope, q_rope], -1),
            latent_BSC,
            rope_BSR,
            kv_b_HC,
            self.scale,
            around.documents_BT,
            around.shard.runs,
            k=self.topk if around.probes else None,
        )

    def _attend_latents(
        self, parts: Parts, around: ContextSurroundings, selection: Selection | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with all heads of the rank's tokens; the shares where the indexers learn."""
        q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC = parts
        if selection is not None and selection.places_BTK is not None:
            keys = latent_BSC.flatten(0, 1)[None], rope_BSR.flatten(0, 1)[None]
            flat = q_nope, q_rope, *keys, kv_b_HC
            return _attend_places(flat, selection.places_BTK, self.scale, around)
        if selection is not None and selection.mask_BTS is not None:
            return _attend_mask(parts, selection.mask_BTS, self.scale, around.shard), None
        keys = latent_BSC, rope_BSR, kv_b_HC
        return attend_parts(q_nope[0], q_rope[0], *keys, around.parts, self.scale)[None], None

    def _attend_heads(
        self, parts: Parts, around: ContextSurroundings, selection: Selection | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the rank's heads for all tokens, and give outputs back to their tokens."""
        shard = around.shard
        q_BTHQ = shard.heads_for_tokens(torch.cat(parts[:2], -1))
        q_nope, q_rope = q_BTHQ.split([self.nope, self.rope], -1)
        latent_BSC, rope_BSR, kv_b_HC = parts[2:]
        keys = latent_BSC, rope_BSR, kv_b_HC.chunk(shard.group.size)[shard.group.rank]
        mask_BTS, shares_BTK = around.visible_BTS, None
        if selection is not None and selection.places_BTK is not None:
            q_flat = q_nope.flatten(0, 1)[None], q_rope.flatten(0, 1)[None]
            k_flat = latent_BSC.flatten(0, 1)[None], rope_BSR.flatten(0, 1)[None]
            places_BTK = shard.gather(selection.places_BTK).flatten(0, 1)[None]
            flat = *q_flat, *k_flat, keys[2]
            out_BTHV, shares_BTK = _attend_places(flat, places_BTK, self.scale, around)
            out_BTHV = out_BTHV.view(*q_nope.shape[:3], -1)
            if shares_BTK is not None:
                # The mean over all heads is the mean over the ranks.
                shares_BTK = shares_BTK.view(shard.rows, shard.tokens, -1)
                shares_BTK = shard.sum_to_owners(shares_BTK) / shard.group.size
            return shard.tokens_for_heads(out_BTHV), shares_BTK
        if selection is not None and selection.mask_BTS is not None:
            mask_BTS = shard.gather(selection.mask_BTS.to(torch.uint8)).bool()
        if mask_BTS is None and around.segments is not None:
            out_BTHV = attend_documents(q_nope, q_rope, *keys, around.segments, self.scale)
        else:
            out_BTHV = attend_expanded(q_nope, q_rope, *keys, mask_BTS, self.scale)
        return shard.tokens_for_heads(out_BTHV), None


def _attend_places(
    parts: Parts, places_BTK: Tensor, scale: float, around: Surroundings
) -> tuple[Tensor, Tensor | None]:
    if around.index_learns:
        return attend_gathered_with_shares(*parts, places_BTK, scale)
    return attend_gathered(*parts, places_BTK, scale), None


def _attend_mask(parts: Parts, mask_BTS: Tensor, scale: float, shard: TokenShard) -> Tensor:
    """Attend row by row where `mask_BTS`, (1, N, T), allows."""
    q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC = parts
    outs = []
    for row, runs in itertools.groupby(own_slices(shard.runs), lambda pair: pair[0].row):
        pairs = list(runs)
        own = slice(pairs[0][1].start, pairs[-1][1].stop)
        # The last query stands at the last key, so that query t of T sees none after S - T + t,
        # as attention with a mask wants it.
        keys = slice(row, row + 1), slice(0, pairs[-1][0].end)
        of_row = q_nope[:, own], q_rope[:, own], latent_BSC[keys], rope_BSR[keys], kv_b_HC
        outs.append(attend_expanded(*of_row, mask_BTS[:, own, keys[1]], scale))
    return torch.cat(outs, dim=1)
