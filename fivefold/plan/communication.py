"""Bytes and seconds of the collectives that a layout needs.

Sizes are what one rank sends. Times are bytes over bandwidth: messages of this size are far above
latency. A group that fits a node uses its link, a larger one the network.
"""

from fivefold.models.config import ModelConfig
from fivefold.plan.hardware import Hardware
from fivefold.plan.layout import Layout

_BF16 = 2


def link_seconds(size: float, group: int, hardware: Hardware) -> float:
    """Return the time to send `size` bytes a rank inside a group of consecutive ranks."""
    inside = group <= hardware.gpus_per_node
    bandwidth = hardware.node_bandwidth if inside else hardware.network_bandwidth
    return size / (bandwidth * hardware.link_efficiency)


def tensor_bytes(config: ModelConfig, tokens: float, tensor: int) -> float:
    """Return one layer's forward traffic: two all-gathers and two reduce-scatters of the stream."""
    return 4 * tokens * config.hidden_size * _BF16 * (tensor - 1) / tensor


def context_bytes(config: ModelConfig, tokens: float, context: int) -> float:
    """Return one layer's forward traffic for gathering latents and index keys of the whole row.

    `tokens` is what one rank holds. Grouped-query attention gathers its keys and values.
    """
    if config.kv_lora_rank is None:
        values = 2 * config.num_key_value_heads * config.head_dim
    else:
        values = config.kv_lora_rank + config.qk_rope_head_dim
        values += config.index_head_dim if config.has_indexer else 0
    return tokens * values * _BF16 * (context - 1)


def expert_seconds(config: ModelConfig, tokens: float, expert: int, hardware: Hardware) -> float:
    """Return the time of one MoE layer's dispatch and combine for `tokens` on a rank.

    A token goes once to each node that holds some of its experts and is copied there over the
    node's link; with uniform routing a node of n is reached with probability 1 - (1 - 1/n)^k.
    """
    if expert == 1:
        return 0.0
    row = config.hidden_size * _BF16
    chosen = config.num_experts_per_tok
    local = min(expert, hardware.gpus_per_node)
    inside = tokens * chosen * row * (local - 1) / local
    seconds = link_seconds(inside, local, hardware)
    nodes = expert // local
    if nodes > 1:
        remote = (nodes - 1) * (1 - (1 - 1 / nodes) ** chosen)
        seconds = max(seconds, link_seconds(tokens * remote * row, expert, hardware))
    return 2 * seconds


def edge_seconds(
    config: ModelConfig, tokens: float, layout: Layout, hardware: Hardware, streams: int = 1
) -> float:
    """Return the time of one pipeline message of `streams` residual streams."""
    size = streams * tokens * config.hidden_size * _BF16 / layout.tensor
    return link_seconds(size, layout.gpus, hardware)


def reduction_seconds(
    parameters: float,
    shards: int,
    layout: Layout,
    hardware: Hardware,
    *,
    gradient_bytes: float,
    weight_bytes: float,
    passes: int = 1,
) -> float:
    """Return the time to reduce gradients `passes` times and to gather the weights once a step.

    Sharded weights are gathered for forward and backward of every pass instead.
    """
    if shards == 1:
        return 0.0
    gathers = 2 * passes if layout.sharding == "weights" else 1
    size = parameters * (passes * gradient_bytes + gathers * weight_bytes) * (shards - 1) / shards
    return link_seconds(size, layout.gpus // layout.pipeline, hardware)
