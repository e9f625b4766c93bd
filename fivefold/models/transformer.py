"""The model: embedding, blocks of latent attention and experts, output head, one MTP layer.

A plain single-device module. Training, serving, quantisation and planning all use it; parallelism
and compilation are applied from outside. `forward` returns normalised hidden states, not logits:
the losses project them in chunks and the samplers project only the last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.errors import ConfigError
from fivefold.models.cache import LatentCache
from fivefold.models.config import ModelConfig
from fivefold.models.layer import GatedMlp, Linear, RMSNorm
from fivefold.models.mla import LatentAttention, Surroundings
from fivefold.models.moe import MoE, Routing
from fivefold.models.mtp import MtpLayer
from fivefold.ops.rotary import inverse_frequencies, rotary_angles


class Output(NamedTuple):
    """Result of the main stack."""

    hidden_BTD: Tensor
    """Hidden states after the final norm."""
    routing: list[Routing]
    """One entry a MoE layer, bottom first."""


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MoE | GatedMlp
        if config.is_moe(layer):
            self.mlp = MoE(config)
        else:
            self.mlp = GatedMlp(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x_BTD: Tensor,
        around: Surroundings,
        selected_BTS: Tensor | None = None,
        forced_TA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Routing | None]:
        """Return the stream, the selection for a `shared` layer above, and the routing of a MoE."""
        attended_BTD, selected_BTS = self.self_attn(
            self.input_layernorm(x_BTD), around, selected_BTS
        )
        x_BTD = x_BTD + attended_BTD
        normed_BTD = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, MoE):
            y_BTD, routing = self.mlp(normed_BTD, forced_TA)
            return x_BTD + y_BTD, selected_BTS, routing
        return x_BTD + self.mlp(normed_BTD), selected_BTS, None


class Transformer(nn.Module):
    """A model of the GLM-5 family; `initialise` or `read_checkpoint` fill its empty weights."""

    speeds_R: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build the modules of `config`.

        Raises:
            ConfigError: grouped-query attention, which can be planned but not built.
        """
        super().__init__()
        if not config.is_mla:
            raise ConfigError(
                expected="a model with latent attention (`kv_lora_rank`)",
                found=f"grouped-query attention in `{config.model_type}`",
                fix="Use `fivefold plan` for this shape, or train one with `kv_lora_rank`",
            )
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.mtp = None
        if config.num_nextn_predict_layers:
            self.mtp = MtpLayer(config, Block(config, config.num_hidden_layers))
        self.rotary_factor = inverse_frequencies(config.rope_parameters, config.qk_rope_head_dim)[1]
        self.register_buffer("speeds_R", self.rotary_speeds(config), persistent=False)

    @staticmethod
    def rotary_speeds(config: ModelConfig) -> Tensor:
        """Return the angular speed of each rotary channel pair, fp32 of (R / 2,)."""
        return inverse_frequencies(config.rope_parameters, config.qk_rope_head_dim)[0]

    def surroundings(
        self,
        positions_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: LatentCache | None = None,
        *,
        absorbed: bool = False,
    ) -> Surroundings:
        """Prepare what the layers share: rotations, visibility, cache.

        `documents_BT` names the document of each token of a packed row; tokens of different
        documents do not see each other. None is faster and right where every row is one document.
        It cannot be combined with a cache.
        """
        turn_BTR = rotary_angles(positions_BT, self.speeds_R, self.rotary_factor)
        visible_BTS = None
        queries = positions_BT.shape[1]
        if documents_BT is not None:
            assert cache is None, "packed rows are for training; decode keeps one document a row"
            visible_BTS = (documents_BT[:, :, None] == documents_BT[:, None]).tril()
        elif cache is not None and queries > 1 and cache.length_tokens:
            keys = torch.arange(cache.length_tokens + queries, device=positions_BT.device)
            visible_BTS = keys <= keys[cache.length_tokens :, None]
            visible_BTS = visible_BTS.expand(positions_BT.shape[0], -1, -1)
        return Surroundings(turn_BTR, visible_BTS, cache, absorbed)

    def forward(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: LatentCache | None = None,
        absorbed: bool | None = None,
        forced_routing: Sequence[Tensor] | None = None,
        around: Surroundings | None = None,
        embedded_BTD: Tensor | None = None,
    ) -> Output:
        """Run the main stack.

        Args:
            ids_BT: token ids, int64.
            positions_BT: position of each token in its document; None counts on from the cache.
            documents_BT: document of each token of a packed row; None: one document a row.
            cache: keys of earlier tokens; the new ones are added.
            absorbed: attention over the latent; None chooses it with a cache of earlier tokens.
            forced_routing: chosen experts (B x T, A) of each MoE layer, to replay a routing.
            around: what `surroundings` returned, for callers that share it with the MTP layer.
            embedded_BTD: the embedding of `ids_BT`, for callers that have it.
        """
        begin = cache.length_tokens if cache is not None else 0
        if positions_BT is None:
            positions_BT = torch.arange(begin, begin + ids_BT.shape[1], device=ids_BT.device)[None]
        if absorbed is None:
            absorbed = begin > 0
        if around is None:
            around = self.surroundings(positions_BT, documents_BT, cache, absorbed=absorbed)
        hidden_BTD = self.embed_tokens(ids_BT) if embedded_BTD is None else embedded_BTD
        selected_BTS: Tensor | None = None
        routing: list[Routing] = []
        for block in self.layers:
            forced = forced_routing[len(routing)] if forced_routing is not None else None
            hidden_BTD, selected_BTS, routed = block(hidden_BTD, around, selected_BTS, forced)
            if routed is not None:
                routing.append(routed)
        if cache is not None:
            cache.advance(ids_BT.shape[1])
        return Output(self.norm(hidden_BTD), routing)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Project normalised hidden states onto the vocabulary, in fp32 or wider."""
        logits = self.lm_head(hidden_BTD)
        return logits if logits.dtype == torch.float64 else logits.float()
