"""A model's shape in a few lines of words and numbers."""

from fivefold.models.config import ModelConfig


def describe_shape(config: ModelConfig) -> list[str]:
    """Return one line each for the sizes, the layers, attention, experts and the indexer."""
    dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    depths = config.fivefold.mtp_depths * config.num_nextn_predict_layers
    layers = f"{dense} dense + {config.num_hidden_layers - dense} MoE layers"
    if depths:
        layers += f" + 1 MTP layer, unrolled {depths}x in training"
    sizes = (
        f"width {config.hidden_size:,}, vocabulary {config.vocab_size:,}, "
        f"context {config.max_position_embeddings:,}"
    )
    lines = [sizes, layers, _attention(config), _experts(config)]
    if config.has_indexer:
        lines.append(
            f"indexer {config.index_n_heads} heads x {config.index_head_dim}, "
            f"keeps {config.index_topk:,} keys a query"
        )
    return lines


def _attention(config: ModelConfig) -> str:
    heads = f"{config.num_attention_heads} heads x {config.qk_head_dim}"
    if config.kv_lora_rank is None:
        return f"GQA, {heads}, {config.num_key_value_heads} for keys and values"
    queries = f"queries {config.q_lora_rank}, " if config.q_lora_rank else ""
    return (
        f"MLA, {heads} ({config.qk_nope_head_dim} + {config.qk_rope_head_dim} rotary), "
        f"values {config.v_head_dim}, latents: {queries}keys and values {config.kv_lora_rank}"
    )


def _experts(config: ModelConfig) -> str:
    shared = f" + {config.n_shared_experts} shared" if config.n_shared_experts else ""
    return (
        f"{config.n_routed_experts} experts of {config.moe_intermediate_size:,}, "
        f"{config.num_experts_per_tok}{shared} a token; "
        f"dense feed-forward {config.intermediate_size:,}"
    )
