"""Exact parameter counts from a model's shape, by part.

Counts every tensor of the released checkpoint layout, so the total of GLM-5 is the checkpoint's
753,864,139,008 to the last one. "Active" is what one token's forward pass multiplies with: the
chosen experts and the output head, not the embedding table (a lookup) and not the MTP layer (it
only trains and drafts).

Surprise: the "744B" of the report leaves the MTP layer out, and "40B active" is 39.9B without the
output head and 40.8B with it.
"""

from dataclasses import dataclass

from fivefold.models.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """One line of the count: weights in matrices (Muon's candidates) and in vectors (AdamW's)."""

    name: str
    matrices: int
    vectors: int
    active: int

    @property
    def total(self) -> int:
        """All parameters of the part."""
        return self.matrices + self.vectors


@dataclass(frozen=True)
class ParameterCount:
    """All parts of one model; every parameter belongs to exactly one."""

    parts: tuple[Part, ...]

    def __getitem__(self, name: str) -> Part:
        """Return the part called `name`."""
        return next(part for part in self.parts if part.name == name)

    @property
    def total(self) -> int:
        """All parameters, the MTP layer and the router biases included."""
        return sum(part.total for part in self.parts)

    @property
    def total_without_mtp(self) -> int:
        """Main stack with embedding and head: the number that names a model ("744B")."""
        return self.total - self["mtp"].total

    @property
    def active(self) -> int:
        """Parameters that one token's forward pass multiplies with, output head included."""
        return sum(part.active for part in self.parts)

    @property
    def active_without_head(self) -> int:
        """Active parameters of the main stack alone."""
        return self.active - self["head"].active


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of every part of the model, in the order in which a token meets them."""
    layers = config.num_hidden_layers
    moe_layers = sum(config.is_moe(layer) for layer in range(layers))
    indexers = sum(has_own_indexer(config, layer) for layer in range(layers))
    expert = expert_parameters(config)
    table = config.vocab_size * config.hidden_size
    return ParameterCount(
        (
            Part("embedding", table, 0, active=0),
            _dense_part("attention", layers * attention_matrices(config), layers * _biases(config)),
            _dense_part(
                "indexer", indexers * indexer_matrices(config), indexers * _indexer_vectors(config)
            ),
            _dense_part("dense feed-forward", (layers - moe_layers) * dense_matrices(config)),
            Part(
                "routed experts",
                moe_layers * config.n_routed_experts * expert,
                0,
                active=moe_layers * config.num_experts_per_tok * expert,
            ),
            _dense_part("shared experts", moe_layers * config.n_shared_experts * expert),
            _dense_part("router", moe_layers * config.n_routed_experts * config.hidden_size),
            _dense_part("router bias", 0, moe_layers * config.n_routed_experts),
            _dense_part("norms", 0, layers * norm_vectors(config) + config.hidden_size),
            _mtp_part(config),
            Part("head", table, 0, active=table),
        )
    )


def attention_matrices(config: ModelConfig) -> int:
    """Count the projection weights of one attention layer (latent or grouped-query)."""
    heads, width = config.num_attention_heads, config.hidden_size
    if config.kv_lora_rank is None:
        query_and_output = 2 * heads * config.head_dim * width
        return query_and_output + 2 * config.num_key_value_heads * config.head_dim * width
    query_width = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        query = query_width * width
    else:
        query = config.q_lora_rank * (width + query_width)
    latent_in = (config.kv_lora_rank + config.qk_rope_head_dim) * width
    latent_out = heads * (config.qk_nope_head_dim + config.v_head_dim) * config.kv_lora_rank
    return query + latent_in + latent_out + heads * config.v_head_dim * width


def latent_matrices(config: ModelConfig) -> int:
    """Count the part of attention that tensor ranks cannot split: the two down-projections."""
    if config.kv_lora_rank is None:
        return 0
    return (
        (config.q_lora_rank or 0) + config.kv_lora_rank + config.qk_rope_head_dim
    ) * config.hidden_size


def indexer_matrices(config: ModelConfig) -> int:
    """Count the projection weights of one indexer: queries, the one key and the head weights."""
    if config.index_n_heads is None or config.q_lora_rank is None:
        return 0
    queries = config.index_n_heads * config.index_head_dim * config.q_lora_rank
    return queries + (config.index_head_dim + config.index_n_heads) * config.hidden_size


def dense_matrices(config: ModelConfig) -> int:
    """Count the weights of one dense feed-forward (gate, up, down)."""
    return 3 * config.hidden_size * config.intermediate_size


def expert_parameters(config: ModelConfig) -> int:
    """Count the weights of one expert (gate, up, down)."""
    return 3 * config.hidden_size * config.moe_intermediate_size


def norm_vectors(config: ModelConfig) -> int:
    """Count the norm weights of one layer: two on the residual stream, those inside attention."""
    on_residual = 2 * config.hidden_size
    if config.kv_lora_rank is None:
        return on_residual + (2 * config.head_dim if config.use_qk_norm else 0)
    return on_residual + (config.q_lora_rank or 0) + config.kv_lora_rank


def has_own_indexer(config: ModelConfig, layer_index: int) -> bool:
    """Does this layer carry indexer weights (and cache index keys) of its own?"""
    return config.has_indexer and config.indexer_type(layer_index) == "full"


def _biases(config: ModelConfig) -> int:
    """Count the biases of one attention layer: GQA's q, k, v; MLA's two down-projections."""
    if not config.attention_bias:
        return 0
    if config.kv_lora_rank is None:
        return (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return (config.q_lora_rank or 0) + config.kv_lora_rank + config.qk_rope_head_dim


def _indexer_vectors(config: ModelConfig) -> int:
    """Count the indexer's LayerNorm on its key: weight and bias."""
    return 2 * config.index_head_dim if config.has_indexer else 0


def _dense_part(name: str, matrices: int, vectors: int = 0) -> Part:
    """Return a part that every token passes whole."""
    return Part(name, matrices, vectors, active=matrices + vectors)


def _mtp_part(config: ModelConfig) -> Part:
    """Count the MTP layer: a full block with an own indexer, `eh_proj` and three norms."""
    if config.num_nextn_predict_layers == 0:
        return Part("mtp", 0, 0, active=0)
    layer = config.num_hidden_layers
    matrices = attention_matrices(config) + 2 * config.hidden_size**2
    vectors = norm_vectors(config) + _biases(config) + 3 * config.hidden_size
    if has_own_indexer(config, layer):
        matrices += indexer_matrices(config)
        vectors += _indexer_vectors(config)
    if config.is_moe(layer):
        experts = config.n_routed_experts + config.n_shared_experts
        matrices += (
            experts * expert_parameters(config) + config.n_routed_experts * config.hidden_size
        )
        vectors += config.n_routed_experts
    else:
        matrices += dense_matrices(config)
    return Part("mtp", matrices, vectors, active=0)
