"""Bytes that a layer saves on one rank of a mesh, and what its put-off weight gradients want.

What `memory.layer_activation_bytes` counts for one token of one process, by what each number is
shared along: the residual stream and the router by all ranks that share tokens, latents by context
ranks alone, heads and columns by tensor ranks too, experts' rows by where they are routed. Figures
are bounds: where a rank gathers what others have, both the part and the whole are counted.

Source: our own layers, tensor by tensor; a test compares them with the offload ledger on each mesh.
"""

from dataclasses import dataclass

from fivefold.models.config import ModelConfig
from fivefold.plan.parameters import has_own_indexer

_INDEX_BYTES = 8
"""An int64 place."""
_ROUTER_INDICES = 3
"""Indices that the router keeps of each choice."""
_EXCHANGE_INDICES = 3
"""Places of each choice that its way to another rank keeps, and back."""
_NORMS = 4


@dataclass(frozen=True)
class RankTokens:
    """What a microbatch gives one rank of a mesh to hold, in tokens."""

    own: float
    """Of the residual stream."""
    sequence: float
    """Whose heads and columns it computes: those of its tensor ranks together."""
    keys: float
    """Whose latents it has: those of its context ranks together."""
    row: int
    """Of one row, at most the keys of a query."""
    routed: float
    """Rows that come to its experts, padding included."""
    tensor: int = 1
    """Ranks that share heads and columns."""
    head_context: int = 1
    """Context ranks that share heads too; 1 where only latents travel."""
    expert: int = 1
    """Ranks that share the experts."""
    crosses: bool = False
    """Do other ranks hold some of the keys?"""

    @property
    def attending(self) -> float:
        """Tokens whose queries this rank answers."""
        return self.sequence if self.head_context == 1 else self.keys

    @property
    def head_share(self) -> float:
        """Share of the heads that answers them."""
        return 1 / (self.tensor * self.head_context)


@dataclass(frozen=True)
class RankBytes:
    """Sizes of a rank's numbers, and what is on besides attention itself."""

    narrow: int
    """Bytes of an activation."""
    wide: int
    """Bytes of a number of the residual stream."""
    exact: int = 4
    """Bytes of statistics and of the router's numbers."""
    has_mask: bool = False
    """Does attention run under a mask?"""
    gathers: bool = False
    """Does it gather selected keys?"""
    learns: bool = False
    """Do the indexers learn?"""
    learn_alone: bool = False
    """Does nothing else?"""


def kept_bytes(config: ModelConfig, layer: int, tokens: RankTokens, size: RankBytes) -> float:
    """Return the most that one run of a layer saves for its backward."""
    if size.learn_alone:
        return _indexer_bytes(config, layer, tokens, size)
    stream = 2 * tokens.own * size.wide + 2 * tokens.sequence * size.narrow
    statistics = _NORMS * tokens.sequence * size.exact
    total = config.hidden_size * stream + statistics
    total += _attention_bytes(config, tokens, size) + _selection_bytes(config, layer, tokens, size)
    return total + _feed_forward_bytes(config, layer, tokens, size)


def input_bytes(config: ModelConfig, tokens: RankTokens, size: RankBytes) -> float:
    """Return what computing a run again wants: its input and the places that were selected."""
    return config.hidden_size * tokens.own * size.wide + places_bytes(config, tokens, size)


def staying_bytes(config: ModelConfig, layer: int, tokens: RankTokens, size: RankBytes) -> float:
    """Return what no copy takes of a run: statistics, too small, and what the router hands on."""
    heads = config.num_attention_heads * tokens.head_share
    total = _NORMS * tokens.sequence * size.exact + tokens.attending * heads * size.exact
    if config.is_moe(layer):
        chosen = config.num_experts_per_tok * _ROUTER_INDICES * _INDEX_BYTES
        total += tokens.own * (config.n_routed_experts * size.exact + chosen)
    return total


def places_bytes(config: ModelConfig, tokens: RankTokens, size: RankBytes) -> float:
    """Return what the selected keys of a run's queries take as int32 places."""
    if not size.gathers:
        return 0.0
    return 4 * min(config.index_topk, tokens.row) * max(tokens.sequence, tokens.attending)


def deferred_bytes(config: ModelConfig, layer: int, tokens: RankTokens, size: RankBytes) -> float:
    """Return what weight gradients of one run want when they are put off.

    That is inputs and incoming gradients of every product (`parallel.pipeline.deferred`).
    """
    width, inner = config.hidden_size, config.moe_intermediate_size
    share = 1 / tokens.tensor
    index = 0.0
    if size.learns and has_own_indexer(config, layer):
        index = ((config.index_n_heads or 0) + 1) * config.index_head_dim
    if size.learn_alone:
        inputs = width + (config.q_lora_rank or 0)
        return tokens.sequence * (index + inputs) * size.narrow if index else 0.0
    latents = config.kv_lora_rank or 0
    heads = config.num_attention_heads * share
    sequence = width + latents + config.qk_rope_head_dim + 2 * (config.q_lora_rank or 0)
    sequence += heads * (config.qk_head_dim + config.v_head_dim) + width
    routed = 0.0
    columns = config.intermediate_size
    if config.is_moe(layer):
        columns = config.n_shared_experts * inner
        routed = 2 * width + 3 * inner
    sequence += index + 2 * width + 3 * columns * share
    joined = 3 * width if layer == config.num_hidden_layers else 0
    numbers = tokens.sequence * sequence + tokens.routed * routed + tokens.own * joined
    return numbers * size.narrow


def _attention_bytes(config: ModelConfig, tokens: RankTokens, size: RankBytes) -> float:
    """Count latents around their norms, query, key, output, statistics and what a mask adds."""
    heads = config.num_attention_heads * tokens.head_share
    latents = config.kv_lora_rank or 0
    value, expanded = config.v_head_dim, config.qk_nope_head_dim + config.v_head_dim
    numbers = tokens.sequence * (2 * (config.q_lora_rank or 0) + latents + config.qk_rope_head_dim)
    numbers += tokens.attending * heads * (config.qk_head_dim + value)
    numbers += tokens.keys * (latents + heads * (config.qk_head_dim + expanded))
    total = numbers * size.narrow + tokens.attending * heads * size.exact
    if tokens.crosses:
        # The whole of the gathered keys is kept, and where each stands on its way.
        gathered = config.qk_rope_head_dim + (config.index_head_dim if config.has_indexer else 0)
        total += tokens.keys * (gathered * size.narrow + _INDEX_BYTES)
    if tokens.head_context > 1:
        # Queries before they are given away, and outputs after they have come back.
        whole_heads = config.num_attention_heads / tokens.tensor
        total += tokens.sequence * whole_heads * (config.qk_head_dim + value) * size.narrow
    if size.has_mask:
        seen = tokens.row * (size.narrow + 1) + heads * value * size.narrow
        total += tokens.attending * seen
    return total


def _selection_bytes(config: ModelConfig, layer: int, tokens: RankTokens, size: RankBytes) -> float:
    """Count selected places and what an indexer that learns saves."""
    total = places_bytes(config, tokens, size)
    if size.learns and has_own_indexer(config, layer):
        heads, channels = config.index_n_heads or 0, config.index_head_dim
        total += tokens.sequence * (heads * (channels + 1) + 2 * channels) * size.narrow
    return total


def _indexer_bytes(config: ModelConfig, layer: int, tokens: RankTokens, size: RankBytes) -> float:
    """Count what an indexer saves whose layer learns nothing else: inputs, queries, keys, weights.

    The loss's own (`ops.index_loss`) are known gradients, which autograd does not see.
    """
    if not has_own_indexer(config, layer):
        return 0.0
    width, heads, channels = config.hidden_size, config.index_n_heads or 0, config.index_head_dim
    inputs = (width + (config.q_lora_rank or 0)) * size.narrow + width * size.exact
    query = (2 * heads * (channels + 1) + 4 * channels + 2) * size.exact
    total = tokens.sequence * (inputs + query)
    if tokens.crosses:
        gathered = (config.kv_lora_rank or 0) + config.qk_rope_head_dim + channels
        total += tokens.keys * (gathered * size.narrow + channels * size.exact + _INDEX_BYTES)
    return total


def _feed_forward_bytes(
    config: ModelConfig, layer: int, tokens: RankTokens, size: RankBytes
) -> float:
    """Count gate, its activation, up and the product; experts redo the activation and keep rows."""
    if not config.is_moe(layer):
        return tokens.sequence * 4 * config.intermediate_size / tokens.tensor * size.narrow
    width, inner, chosen = (
        config.hidden_size,
        config.moe_intermediate_size,
        config.num_experts_per_tok,
    )
    router = (width + config.n_routed_experts + chosen + 1) * size.exact
    router += chosen * _ROUTER_INDICES * _INDEX_BYTES
    if tokens.expert > 1:
        router += chosen * _EXCHANGE_INDICES * _INDEX_BYTES
    columns = config.n_shared_experts * inner / tokens.tensor
    row = (width + 3 * inner + 1) * size.narrow + _INDEX_BYTES * (1 + (tokens.expert > 1))
    shared = tokens.sequence * 4 * columns * size.narrow
    return tokens.own * router + tokens.routed * row + shared
