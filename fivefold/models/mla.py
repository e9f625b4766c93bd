"""Multi-head latent attention with sparse selection (MLA + DSA).

Queries and key-values pass through low-rank latents; the cache keeps the key-value latent and one
rotated key for all heads. Without a cache the heads' keys and values are expanded; with one,
attention runs absorbed over the latent. Which keys a query sees is the causal and document mask,
narrowed by the indexer once there are more keys than `index_topk`: up to there sparse and dense are
the same function. Sources: DeepSeek-V2 report, section 2.1; DeepSeek-V3.2 report, section 2.1.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from fivefold.models.cache import LatentCache
from fivefold.models.config import ModelConfig
from fivefold.models.indexer import Indexer
from fivefold.models.layer import Linear, RMSNorm
from fivefold.ops.attention import attend_absorbed, attend_expanded
from fivefold.ops.rotary import rotate_halves, rotate_pairs, yarn_scale


@dataclass(frozen=True)
class Surroundings:
    """What all layers of one forward share."""

    turn_BTR: Tensor
    """Rotation of each query's position, complex (B, T, R / 2)."""
    visible_BTS: Tensor | None
    """Keys of each query by causality and document; None: causal, or one query that sees all."""
    cache: LatentCache | None
    """Keys of earlier tokens; None: the queries' own keys are all there are."""
    absorbed: bool
    """Run attention over the latent instead of expanded heads."""


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
        self, x_BTD: Tensor, around: Surroundings, selected_BTS: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; returns the output (B, T, D) and the selection that a `shared` layer may reuse.

        `selected_BTS` is the selection of the layer below, None where nothing was narrowed.
        """
        rows, queries, _ = x_BTD.shape
        q_latent_BTC, q_nope, q_rope = self._queries(x_BTD, around.turn_BTR)
        latent_BSC, rope_BSR = self._keys(x_BTD, around.turn_BTR)
        index_BSJ = None
        context = queries + (around.cache.length_tokens if around.cache else 0)
        narrows = self.selects and context > self.topk
        if self.indexer is not None and (narrows or around.cache is not None):
            index_BSJ = self.indexer.keys(x_BTD, around.turn_BTR)
        if around.cache is not None:
            latent_BSC, rope_BSR, index_BSJ = around.cache.append(
                self.layer, latent_BSC, rope_BSR, index_BSJ
            )
        if not narrows:
            selected_BTS = None
        elif self.indexer is not None:
            assert q_latent_BTC is not None, "the indexer reads the query latent"
            assert index_BSJ is not None, "a full layer has index keys"
            selected_BTS = self.indexer.select(
                x_BTD, q_latent_BTC, around.turn_BTR, index_BSJ, around.visible_BTS
            )
        kv_b_HC = self.kv_b_proj.weight.view(self.heads, -1, self.latent)
        attend = attend_absorbed if around.absorbed else attend_expanded
        visible = around.visible_BTS if selected_BTS is None else selected_BTS
        out_BTHV = attend(q_nope, q_rope, latent_BSC, rope_BSR, kv_b_HC, visible, self.scale)
        return self.o_proj(out_BTHV.reshape(rows, queries, -1)), selected_BTS

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


def _softmax_scale(config: ModelConfig) -> float:
    scale = config.qk_head_dim**-0.5
    parameters = config.rope_parameters
    if parameters.get("rope_type", "default") != "default" and parameters.get("mscale_all_dim"):
        scale *= yarn_scale(float(parameters["factor"]), float(parameters["mscale_all_dim"])) ** 2
    return scale
