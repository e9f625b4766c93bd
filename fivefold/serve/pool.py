"""Blocks of cache memory: who owns which, and the tensors behind them.

One table of blocks serves every layer: block b covers the slots b x block_tokens onwards of each
layer's latents (with the rotated key in the same row) and of each indexer's keys. `BlockPool` knows
nothing of tensors; `CachePool` nothing of owners. Block 0 is nobody's: padding reads and writes it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.models.config import ModelConfig
from fivefold.serve.config import EngineConfig


class BlockPool:
    """A stack of free block numbers."""

    def __init__(self, blocks: int) -> None:
        """Own the blocks 1 to `blocks`."""
        self.total = blocks
        self._free = list(range(blocks, 0, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hand out `count` blocks, which the caller has made sure are free."""
        assert 0 <= count <= len(self._free), "take only what is free"
        taken = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        return taken

    def give(self, blocks: list[int]) -> None:
        """Take blocks back."""
        self._free.extend(reversed(blocks))
        assert len(self._free) <= self.total, "a block was given back twice"

    def check(self, owned: list[int]) -> None:
        """Assert that `owned` and the free ones are all blocks, each once."""
        every = sorted([*owned, *self._free])
        assert every == list(range(1, self.total + 1)), "blocks are lost or owned twice"


class CacheRow(NamedTuple):
    """One layer's memory."""

    latent_SX: Tensor
    """Latent and rotated key of every slot, (slots, C + R)."""
    index_SJ: Tensor | None
    """Index key of every slot; None where the layer has no indexer of its own."""


class CachePool:
    """The tensors of all layers, the MTP layer's at the end if it is wanted."""

    def __init__(
        self,
        config: ModelConfig,
        sizes: EngineConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the blocks of `sizes` and the one of the padding."""
        slots = (sizes.pool_blocks + 1) * sizes.block_tokens
        assert config.kv_lora_rank is not None, "serving needs latent attention"
        width = config.kv_lora_rank + config.qk_rope_head_dim
        self.device = device
        self.layers: list[CacheRow] = []
        for layer in range(config.num_hidden_layers + (sizes.draft_tokens > 0)):
            index = None
            if config.has_indexer and config.indexer_type(layer) == "full":
                index = torch.zeros(slots, config.index_head_dim, dtype=dtype, device=device)
            latent = torch.zeros(slots, width, dtype=dtype, device=device)
            self.layers.append(CacheRow(latent, index))
