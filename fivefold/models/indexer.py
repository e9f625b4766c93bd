"""Lightning indexer: which keys does each query attend to?

A few small heads score every earlier token: I[t, s] = sum_j w[t, j] relu(q[t, j] . k[s]), and the
`index_topk` best survive, by the one selection rule of `ops.select_topk`. Sources: DeepSeek-V3.2
report, section 2.1, equations 1 and 2; GLM-5 report, section 2.1.1.

Surprises: the rotary channels come FIRST in an indexer head (in attention they come last); the
input is the same normalised query latent that the attention's queries are made of; scores can be
negative, because the head weights can. No gradient passes from the selection, so language-model
training never moves these weights: the adaptation stage trains them against the attention's own
distribution.
"""

import torch
from torch import Tensor, nn

from fivefold.models.config import ModelConfig
from fivefold.models.layer import LayerNorm, Linear
from fivefold.ops.index_scores import index_scores
from fivefold.ops.rotary import rotate_halves, rotate_pairs
from fivefold.ops.select_topk import selection_mask


class Indexer(nn.Module):
    """Scores keys with `index_n_heads` heads of `index_head_dim` channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.index_n_heads is not None, "the config has no indexer"
        assert config.q_lora_rank is not None, "the indexer reads the query latent"
        self.heads = config.index_n_heads
        self.head_dim = config.index_head_dim
        self.rope_dim = config.qk_rope_head_dim
        self.topk = config.index_topk
        self.rotate = rotate_pairs if config.indexer_rope_interleave else rotate_halves
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.head_dim)
        self.wk = Linear(config.hidden_size, self.head_dim)
        self.k_norm = LayerNorm(self.head_dim, eps=1e-6)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    @torch.no_grad()
    def keys(self, x_BTD: Tensor, turn_BTR: Tensor) -> Tensor:
        """Return the index keys (B, T, J) that later queries score."""
        key_BT1J = self.k_norm(self.wk(x_BTD))[:, :, None]
        return self._turn(key_BT1J, turn_BTR)[:, :, 0]

    @torch.no_grad()
    def select(
        self,
        x_BTD: Tensor,
        q_latent_BTC: Tensor,
        turn_BTR: Tensor,
        key_BSJ: Tensor,
        visible_BTS: Tensor | None,
    ) -> Tensor:
        """Mark the kept keys of each query, bool (B, T, S); no query sees a key after itself.

        `visible_BTS` narrows further (documents of a packed row); None: nothing does.
        """
        rows, queries, _ = x_BTD.shape
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        q_BTIJ = self.wq_b(q_latent_BTC).view(rows, queries, self.heads, self.head_dim)
        q_BTIJ = self._turn(q_BTIJ, turn_BTR).to(wide)
        weight_BTI = nn.functional.linear(x_BTD.to(wide), self.weights_proj.weight.to(wide))
        weight_BTI = weight_BTI * (self.heads * self.head_dim) ** -0.5
        scores_BTS = index_scores(q_BTIJ, key_BSJ.to(wide), weight_BTI)
        if visible_BTS is not None:
            scores_BTS.masked_fill_(~visible_BTS, -torch.inf)
        return selection_mask(scores_BTS, self.topk)

    def _turn(self, x_BTHJ: Tensor, turn_BTR: Tensor) -> Tensor:
        rope, rest = x_BTHJ.split([self.rope_dim, self.head_dim - self.rope_dim], dim=-1)
        return torch.cat([self.rotate(rope, turn_BTR), rest], dim=-1)
