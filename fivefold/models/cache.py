"""The decode cache: one latent, one rotated key and one index key a token and layer.

At GLM-5's shape that is 512 + 64 + 128 numbers a token and layer, against 32,768 for expanded keys
and values. Rows are equally long; the serving engine keeps its own paged form of the same tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig


class LayerCache(NamedTuple):
    """Preallocated tensors of one layer."""

    latent_BSC: Tensor
    rope_BSR: Tensor
    index_BSJ: Tensor | None


class LatentCache:
    """What `rows` equally long sequences have left behind in each layer."""

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity_tokens: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate for `capacity_tokens`; layers that share a selection keep no index keys.

        Raises:
            ConfigError: more capacity than the model's context.
        """
        if capacity_tokens > config.max_position_embeddings:
            raise ConfigError(
                expected=f"at most {config.max_position_embeddings} tokens of context",
                found=f"{capacity_tokens} (prompt and new tokens together)",
                fix="Shorten the prompt or ask for fewer new tokens",
            )
        self.length_tokens = 0
        self.capacity_tokens = capacity_tokens
        assert config.kv_lora_rank is not None, "a latent cache needs latent attention"
        self.layers: list[LayerCache] = []
        for layer in range(config.num_hidden_layers):
            shapes = [config.kv_lora_rank, config.qk_rope_head_dim]
            if config.has_indexer and config.indexer_type(layer) == "full":
                shapes.append(config.index_head_dim)
            tensors = [
                torch.zeros(rows, capacity_tokens, width, dtype=dtype, device=device)
                for width in shapes
            ]
            self.layers.append(LayerCache(*tensors, *([None] if len(tensors) == 2 else [])))

    def append(
        self, layer: int, latent_BTC: Tensor, rope_BTR: Tensor, index_BTJ: Tensor | None
    ) -> LayerCache:
        """Write the keys of the next tokens of one layer and return views of all keys so far.

        `length_tokens` moves only when the caller ends the forward with `advance`.
        """
        begin, end = self.length_tokens, self.length_tokens + latent_BTC.shape[1]
        assert end <= self.capacity_tokens, "the cache is full: allocate more"
        kept = self.layers[layer]
        kept.latent_BSC[:, begin:end] = latent_BTC
        kept.rope_BSR[:, begin:end] = rope_BTR
        index_BSJ = None
        if index_BTJ is not None and kept.index_BSJ is not None:
            kept.index_BSJ[:, begin:end] = index_BTJ
            index_BSJ = kept.index_BSJ[:, :end]
        return LayerCache(kept.latent_BSC[:, :end], kept.rope_BSR[:, :end], index_BSJ)

    def advance(self, tokens: int) -> None:
        """Count the tokens that a forward has written."""
        self.length_tokens += tokens

    def truncate(self, length_tokens: int) -> None:
        """Forget all tokens from `length_tokens` on (rejected drafts, edited prompts)."""
        assert 0 <= length_tokens <= self.length_tokens, "can only shorten"
        self.length_tokens = length_tokens
