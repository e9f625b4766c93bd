"""How an engine shares its memory and its steps among requests; torch-free.

The defaults fit the small models on two CPU cores. A step's budget bounds how long a new prompt
holds up the tokens of others; the pool bounds how much context exists at a time, prefixes that
finished requests left behind included.
"""

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError


class EngineConfig(Config):
    """Sizes and modes of one engine."""

    block_tokens: int = pydantic.Field(default=16, ge=1, le=256)
    """Tokens of one block: the unit of memory and of prefix sharing."""
    pool_tokens: int = pydantic.Field(default=65_536, ge=1)
    """Tokens that the cache holds, over all requests and kept prefixes."""
    step_tokens: int = pydantic.Field(default=512, ge=1)
    """Tokens of one step at most: decode, drafts and prompt chunks share the budget."""
    most_running: int = pydantic.Field(default=64, ge=1)
    """Requests that compute at a time."""
    most_waiting: int = pydantic.Field(default=4096, ge=1)
    """Requests that may wait; one more is refused."""
    shares_prefixes: bool = True
    """Keep the blocks of finished requests for others with the same beginning."""
    deterministic: bool = False
    """Make every number independent of the batch, bit for bit; two to ten times slower."""
    draft_tokens: int = pydantic.Field(default=0, ge=0, le=16)
    """Most tokens that the MTP layer drafts ahead of a verification; 0: no speculation."""
    adapts_drafts: bool = True
    """Draft fewer tokens for a request whose drafts are rejected."""

    @property
    def pool_blocks(self) -> int:
        """Whole blocks of the pool."""
        return self.pool_tokens // self.block_tokens

    @pydantic.model_validator(mode="after")
    def _check_budget(self) -> "EngineConfig":
        if self.step_tokens < self.most_running * (1 + self.draft_tokens):
            raise ConfigError(
                expected="`step_tokens` of at least `most_running` x (1 + `draft_tokens`)",
                found=f"{self.step_tokens} < {self.most_running} x {1 + self.draft_tokens}",
                fix="Raise `step_tokens`, or run fewer requests at a time",
            )
        if not self.pool_blocks:
            raise ConfigError(
                expected="a pool of at least one block",
                found=f"{self.pool_tokens} tokens in blocks of {self.block_tokens}",
                fix="Raise `pool_tokens`",
            )
        return self
