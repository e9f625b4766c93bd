"""Bytes of one unsharded replica: weights, gradients, optimizer, activations and cache.

Sharding divides these numbers (`search` does it); here stands what there is to divide. Saved
activations are counted from what our layers keep for their backward pass, tensor by tensor, for
one token; a test compares them with the tensors that autograd saves. The loss is computed in
chunks, so full logits never exist.
"""

from dataclasses import dataclass

from fivefold.models.config import ModelConfig
from fivefold.plan.config import Precision, Recompute
from fivefold.plan.parameters import count_parameters, has_own_indexer

MTP_WIDTHS = 5
"""Residual widths that an MTP depth saves beside its block: inputs of three norms, `eh_proj`'s."""

_NORMS = 4


@dataclass(frozen=True)
class StateBytes:
    """Bytes that live through the whole step, for one full copy of the model."""

    weights: float
    gradients: float
    master_weights: float
    moments: float

    @property
    def total(self) -> float:
        """Sum over the kinds."""
        return self.weights + self.gradients + self.master_weights + self.moments


@dataclass(frozen=True)
class CacheBytes:
    """Bytes that decoding keeps for one token, over all layers of the main stack."""

    latent: float
    index_keys: float
    expanded: float

    @property
    def total(self) -> float:
        """What the cache really holds: latents and index keys."""
        return self.latent + self.index_keys


def state_bytes(config: ModelConfig, precision: Precision, *, muon: bool = True) -> StateBytes:
    """Return weights, gradients and optimizer state; Muon keeps one moment for each matrix.

    Embedding, head and vectors are on AdamW, which keeps two; so is everything with `muon=False`.
    """
    count = count_parameters(config)
    tables = count["embedding"].total + count["head"].total
    on_muon = sum(part.matrices for part in count.parts) - tables if muon else 0
    moments = 2 * count.total - on_muon
    return StateBytes(
        weights=count.total * precision.weight_bytes,
        gradients=count.total * precision.gradient_bytes,
        master_weights=count.total * precision.master_bytes,
        moments=moments * precision.moment_bytes,
    )


def layer_activation_bytes(
    config: ModelConfig,
    layer_index: int,
    precision: Precision,
    recompute: Recompute = "none",
    *,
    sparse: bool = False,
) -> float:
    """Return the bytes that one layer saves for its backward pass, for one token.

    On the residual stream that is the input of each half and its normalised copy; the second copy
    is recomputed with the feed-forward. Softmax and norm statistics and the router are fp32.
    """
    width = config.hidden_size
    if recompute == "full":
        return width * precision.activation_bytes
    values = 3 * width + _attention_values(config)
    if sparse and has_own_indexer(config, layer_index):
        values += _indexer_values(config)
    wide = config.num_attention_heads + _NORMS
    if recompute == "none":
        values += width + _feed_forward_values(config, layer_index)
        wide += _router_values(config) if config.is_moe(layer_index) else 0
    return values * precision.activation_bytes + wide * 4


def activation_bytes(
    config: ModelConfig,
    precision: Precision,
    recompute: Recompute = "none",
    *,
    sparse: bool = False,
) -> float:
    """Return the bytes that one token saves: all layers, MTP at every depth, the final norm."""
    layers = range(config.num_hidden_layers)
    stack = sum(
        layer_activation_bytes(config, layer, precision, recompute, sparse=sparse)
        for layer in layers
    )
    depths = config.fivefold.mtp_depths * config.num_nextn_predict_layers
    block = layer_activation_bytes(
        config, config.num_hidden_layers, precision, recompute, sparse=sparse
    )
    width = config.hidden_size * precision.activation_bytes
    return stack + depths * (block + MTP_WIDTHS * width) + 2 * width


def cache_bytes(config: ModelConfig, precision: Precision) -> CacheBytes:
    """Return the decoding cache of one token, and what keys and values of all heads would take."""
    layers = config.num_hidden_layers
    heads = config.num_key_value_heads
    if config.kv_lora_rank is None:
        latent = expanded = 2 * heads * config.head_dim
    else:
        latent = config.kv_lora_rank + config.qk_rope_head_dim
        expanded = heads * (config.qk_head_dim + config.v_head_dim)
    indexers = sum(has_own_indexer(config, layer) for layer in range(layers))
    return CacheBytes(
        latent=layers * latent * precision.cache_bytes,
        index_keys=indexers * config.index_head_dim * precision.cache_bytes,
        expanded=layers * expanded * precision.cache_bytes,
    )


def _attention_values(config: ModelConfig) -> int:
    """Count the values that attention saves: latents around their norms, query, key, output.

    The expanded latent stays whole, because the value is a view of it.
    """
    heads = config.num_attention_heads
    if config.kv_lora_rank is None:
        kept = heads + 2 * config.num_key_value_heads
        return (kept + heads) * config.head_dim
    query_latent = 2 * (config.q_lora_rank or 0)
    latent = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    expanded = config.qk_nope_head_dim + config.v_head_dim
    return query_latent + latent + heads * (2 * config.qk_head_dim + expanded + config.v_head_dim)


def _indexer_values(config: ModelConfig) -> int:
    """Count the values that the indexer saves: queries, key before and after its norm, weights."""
    heads = config.index_n_heads or 0
    return heads * config.index_head_dim + 2 * config.index_head_dim + heads


def _feed_forward_values(config: ModelConfig, layer_index: int) -> int:
    """Count gate, its activation, up and the product; experts redo the activation and keep rows."""
    if not config.is_moe(layer_index):
        return 4 * config.intermediate_size
    chosen, inner = config.num_experts_per_tok, config.moe_intermediate_size
    routed = chosen * (config.hidden_size + 3 * inner + 1)
    return routed + 4 * config.n_shared_experts * inner


def _router_values(config: ModelConfig) -> int:
    """Count fp32 values: router input, scores, and a weight and three int64 indices a choice."""
    choices = config.num_experts_per_tok * (1 + 3 * 2)
    return config.hidden_size + config.n_routed_experts + choices + 1
