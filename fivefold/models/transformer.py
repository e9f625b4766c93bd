"""The model: embedding, blocks of latent attention and experts, output head, one MTP layer.

A plain single-device module. Training, serving, quantisation and planning all use it; parallelism
and compilation are applied from outside. `forward` returns normalised hidden states, not logits:
the losses project them in chunks and the samplers project only the last.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fivefold.errors import ConfigError
from fivefold.models.cache import LatentCache
from fivefold.models.config import ModelConfig
from fivefold.models.indexer import Kept, Selection
from fivefold.models.layer import GatedMlp, Linear, RMSNorm
from fivefold.models.mla import LatentAttention
from fivefold.models.moe import MoE, Routing
from fivefold.models.mtp import MtpLayer
from fivefold.models.surroundings import IndexerMode, Surroundings, make_surroundings
from fivefold.ops.chunked_cross_entropy import chunked_loss_and_logprobs
from fivefold.ops.index_loss import IndexLoss
from fivefold.ops.rotary import inverse_frequencies, rotary_angles

HeadLoss = Callable[..., tuple[Tensor, Tensor]]
"""`chunked_loss_and_logprobs`, or what does the same from some rows of the head."""


class Output(NamedTuple):
    """Result of the main stack."""

    hidden_BTD: Tensor
    """Hidden states after the final norm."""
    routing: list[Routing]
    """One entry a MoE layer, bottom first."""
    index_losses: list[IndexLoss]
    """One entry a layer where the indexers learn or are probed, else none."""


class BlockOutput(NamedTuple):
    """Result of one block."""

    x_BTD: Tensor
    """The residual stream."""
    selection: Selection | None
    """For a layer above that shares it."""
    routing: Routing | None
    """What a MoE layer decided."""
    index_loss: IndexLoss | None
    """What the indexer has to learn."""


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    recompute = False
    """Keep the block's input and selection alone and run it again in the backward pass."""

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
        below: Selection | None = None,
        forced_TA: Tensor | None = None,
    ) -> BlockOutput:
        """Pass (B, T, D) on; `below` is the selection of the layer below."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                self._run,
                x_BTD,
                around,
                below,
                forced_TA,
                Kept(),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return self._run(x_BTD, around, below, forced_TA)

    def _run(
        self,
        x_BTD: Tensor,
        around: Surroundings,
        below: Selection | None,
        forced_TA: Tensor | None,
        kept: Kept | None = None,
    ) -> BlockOutput:
        attended = self.self_attn(self.input_layernorm(x_BTD), around, below, kept)
        x_BTD = x_BTD + attended.y_BTD
        normed_BTD = self.post_attention_layernorm(x_BTD)
        routing = None
        if isinstance(self.mlp, MoE):
            y_BTD, routing = self.mlp(normed_BTD, forced_TA)
        else:
            y_BTD = self.mlp(normed_BTD)
        return BlockOutput(x_BTD + y_BTD, attended.selection, routing, attended.index_loss)


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
        self.head_loss: HeadLoss = chunked_loss_and_logprobs
        self.mtp = None
        if config.num_nextn_predict_layers:
            self.mtp = MtpLayer(config, Block(config, config.num_hidden_layers))
        self.rotary_factor = inverse_frequencies(config.rope_parameters, config.qk_rope_head_dim)[1]
        self.register_buffer("speeds_R", self.rotary_speeds(config), persistent=False)

    def set_rope_theta(self, rope_theta: float) -> None:
        """Change the rotary base, in the config too; weights stay as they are."""
        parameters = {**self.config.rope_parameters, "rope_theta": rope_theta}
        self.config = self.config.model_copy(update={"rope_parameters": parameters})
        self.speeds_R = self.rotary_speeds(self.config).to(self.speeds_R.device)

    def set_index_topk(self, index_topk: int) -> None:
        """Change how many keys every query keeps, in the config too; weights stay as they are."""
        self.config = self.config.model_copy(update={"index_topk": index_topk})
        for module in self.modules():
            if isinstance(module, LatentAttention):
                module.topk = index_topk

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
        indexer: IndexerMode = "frozen",
        prefixes_BT: Tensor | None = None,
    ) -> Surroundings:
        """Prepare what the layers share; the MTP layer shares it with the main stack.

        `documents_BT` names the document of each token of a packed row; tokens of different
        documents do not see each other. None is faster and right where every row is one document.
        It cannot be combined with a cache. `prefixes_BT` names the document, earlier in the row,
        that a token sees beside its own (`NO_PREFIX`: none); rows of a mask's length only.
        """
        return make_surroundings(
            rotary_angles(positions_BT, self.speeds_R, self.rotary_factor),
            documents_BT,
            cache,
            queries=positions_BT.shape[1],
            absorbed=absorbed,
            indexer=indexer,
            prefixes_BT=prefixes_BT,
        )

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
        selection: Selection | None = None
        routing: list[Routing] = []
        index_losses: list[IndexLoss] = []
        for block in self.layers:
            forced = forced_routing[len(routing)] if forced_routing is not None else None
            hidden_BTD, selection, routed, index_loss = block(hidden_BTD, around, selection, forced)
            routing += [] if routed is None else [routed]
            index_losses += [] if index_loss is None else [index_loss]
        if cache is not None:
            cache.advance(ids_BT.shape[1])
        return Output(self.norm(hidden_BTD), routing, index_losses)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Project normalised hidden states onto the vocabulary, in fp32 or wider."""
        logits = self.lm_head(hidden_BTD)
        return logits if logits.dtype == torch.float64 else logits.float()
