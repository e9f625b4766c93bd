"""FLOPs a token, by part, context and stage.

A multiply-add counts as two. Only matrix products count (projections, experts, attention scores
and values, indexer scores, head); norms, rotary and softmax are left out. A row is one causal
sequence: a token at position t sees t keys, on average (T + 1) / 2.

Attention has two forms with the same projections. *Expanded* builds a key and a value for every
head; *absorbed* folds the up-projections into query and output and reads the latent itself, which
costs (2 x latent + rope) instead of (nope + rope + value) channels a key and head. Selected keys
differ from query to query, so the sparse form is absorbed. A backward pass costs two forward
passes, except for the indexer: its inputs are detached, so it needs no gradient for them, and its
loss touches only the selected keys.

Surprise: at long context the indexer, not attention, is the quadratic part of a sparse model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fivefold.models.config import ModelConfig
from fivefold.plan.config import Recompute, TrainingStage
from fivefold.plan.parameters import (
    attention_matrices,
    dense_matrices,
    expert_parameters,
    has_own_indexer,
    indexer_matrices,
)


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one token, averaged over its row; fields are disjoint."""

    attention_projections: float = 0.0
    attention_core: float = 0.0
    indexer_projections: float = 0.0
    indexer_scores: float = 0.0
    feed_forward: float = 0.0
    experts: float = 0.0
    router: float = 0.0
    mtp: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        """Sum over the parts."""
        return sum(vars(self).values())


def mean_visible_keys(context: int) -> float:
    """Return the keys that a token of a causal row of `context` tokens sees on average."""
    return (context + 1) / 2


def mean_selected_keys(context: int, topk: int) -> float:
    """Return the keys that a token attends to on average when at most `topk` are selected."""
    kept = min(topk, context)
    return kept - kept * (kept - 1) / (2 * context)


def forward_flops(config: ModelConfig, context: int, *, sparse: bool = False) -> TokenFlops:
    """Count one token's forward pass over rows of `context` tokens, without MTP.

    `sparse` runs the indexer and attends to its selection; a row no longer than `index_topk`
    selects everything and keeps the expanded form.
    """
    layers = layer_flops(config, range(config.num_hidden_layers), context, sparse=sparse)
    return replace(layers, head=head_flops(config))


def layer_flops(
    config: ModelConfig, layers: Sequence[int], context: int, *, sparse: bool
) -> TokenFlops:
    """Count one token's forward pass through the layers at these indices."""
    sparse = sparse and config.has_indexer
    binding = sparse and context > config.index_topk
    visible = mean_visible_keys(context)
    keys = mean_selected_keys(context, config.index_topk) if binding else visible
    moe = sum(config.is_moe(layer) for layer in layers)
    indexers = _count_indexers(config, layers) * sparse
    experts_a_token = config.num_experts_per_tok + config.n_shared_experts
    return TokenFlops(
        attention_projections=2 * len(layers) * attention_matrices(config),
        attention_core=len(layers) * keys * pair_flops(config, absorbed=binding),
        indexer_projections=2 * indexers * indexer_matrices(config),
        indexer_scores=indexers * visible * index_pair_flops(config),
        feed_forward=2 * (len(layers) - moe) * dense_matrices(config),
        experts=2 * moe * experts_a_token * expert_parameters(config),
        router=2 * moe * config.n_routed_experts * config.hidden_size,
    )


def training_flops(
    config: ModelConfig,
    context: int,
    *,
    stage: TrainingStage = "dense",
    recompute: Recompute = "none",
) -> TokenFlops:
    """Count one token's share of a training step: forward, backward and what is computed again.

    Model FLOPs (the M of MFU) are those with `recompute="none"`. The warm-up stage needs a forward
    pass of the main stack and the indexers' own step; it runs neither head nor MTP.
    """
    layers = range(config.num_hidden_layers)
    if stage == "warmup":
        forward = vars(forward_flops(config, context)) | {"head": 0.0}
        return TokenFlops(
            **forward | _indexer_step(config, layers, context, mean_visible_keys(context))
        )
    step = vars(_step_of(config, layers, context, stage, recompute))
    return TokenFlops(**step | {"mtp": _mtp_step(config, context, stage, recompute)})


def head_flops(config: ModelConfig) -> int:
    """Count one token's forward pass through the output head."""
    return 2 * config.vocab_size * config.hidden_size


def decode_flops(config: ModelConfig, context: int, *, sparse: bool = False) -> TokenFlops:
    """Count the forward pass of one token decoded after `context` cached ones (absorbed)."""
    layers = config.num_hidden_layers
    base = vars(forward_flops(config, 1, sparse=sparse))
    keys = min(config.index_topk, context) if sparse and config.has_indexer else context
    base["attention_core"] = layers * keys * pair_flops(config, absorbed=True)
    indexers = _count_indexers(config, range(layers)) * sparse
    base["indexer_scores"] = indexers * context * index_pair_flops(config)
    return TokenFlops(**base)


def sparse_pays_from(config: ModelConfig) -> int | None:
    """Return the shortest context at which a sparse forward pass is cheaper, None if none is.

    Bisects: beyond the kept keys the dense cost grows faster than the sparse one.
    """
    low, high = 1, config.max_position_embeddings

    def saves(context: int) -> bool:
        sparse = forward_flops(config, context, sparse=True).total
        return sparse < forward_flops(config, context).total

    if not config.has_indexer or not saves(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if saves(middle) else (middle + 1, high)
    return low


def pair_flops(config: ModelConfig, *, absorbed: bool) -> int:
    """Count the FLOPs of one query meeting one key and its value in one layer, over all heads."""
    if config.kv_lora_rank is None:
        channels = 2 * config.head_dim
    elif absorbed:
        channels = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    else:
        channels = config.qk_head_dim + config.v_head_dim
    return 2 * config.num_attention_heads * channels


def index_pair_flops(config: ModelConfig) -> int:
    """Count the FLOPs of one indexer scoring one query-key pair: dot products and head weights."""
    return 2 * (config.index_n_heads or 0) * (config.index_head_dim + 1)


def _step_of(
    config: ModelConfig,
    layers: Sequence[int],
    context: int,
    stage: TrainingStage,
    recompute: Recompute,
) -> TokenFlops:
    """Count forward, backward and recomputation of these layers and one output head."""
    forward = vars(layer_flops(config, layers, context, sparse=stage == "sparse"))
    forward |= {"head": head_flops(config)}
    again = {"none": (), "feed_forward": ("feed_forward", "experts"), "full": tuple(forward)}
    factors = {name: 4 if name in again[recompute] and name != "head" else 3 for name in forward}
    step = {name: factors[name] * flops for name, flops in forward.items()}
    if stage == "sparse":
        kept = mean_selected_keys(context, config.index_topk)
        for name, flops in _indexer_step(config, layers, context, kept).items():
            step[name] = flops + (forward[name] if recompute == "full" else 0)
    return TokenFlops(**step)


def _mtp_step(
    config: ModelConfig, context: int, stage: TrainingStage, recompute: Recompute
) -> float:
    """Count the MTP layer's step: block, `eh_proj` and head, once for every trained depth."""
    if config.num_nextn_predict_layers == 0:
        return 0.0
    block = _step_of(config, [config.num_hidden_layers], context, stage, recompute).total
    joined = (4 if recompute == "full" else 3) * 2 * 2 * config.hidden_size**2
    return config.fivefold.mtp_depths * (block + joined)


def _indexer_step(
    config: ModelConfig, layers: Sequence[int], context: int, learned_keys: float
) -> dict[str, float]:
    """Count forward and backward of the indexers, whose loss reads `learned_keys` keys a token."""
    indexers = _count_indexers(config, layers)
    pairs = mean_visible_keys(context) + 2 * learned_keys
    return {
        "indexer_projections": 4 * indexers * indexer_matrices(config),
        "indexer_scores": indexers * pairs * index_pair_flops(config),
    }


def _count_indexers(config: ModelConfig, layers: Sequence[int]) -> int:
    return sum(has_own_indexer(config, layer) for layer in layers)
