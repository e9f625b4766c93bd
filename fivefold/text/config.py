"""Configuration of the tokenizer that a recipe trains."""

from typing import Literal

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError
from fivefold.text.special import SPECIAL_TOKENS

BYTE_VALUES = 256
"""Every byte is a token, so that no text is unknown."""


class TokenizerConfig(Config):
    """Size, training budget and digit rule of a byte-level BPE tokenizer."""

    vocab_size: int = 2048
    """Ids in total, the special tokens included; at least 420."""
    max_train_bytes: int = pydantic.Field(default=8_000_000, gt=0)
    """UTF-8 bytes of text that training reads before it stops."""
    digits: Literal["triples", "individual"] = "triples"
    """Split numbers into groups of up to three digits (as GLM does) or into single digits."""

    @property
    def regular_ids(self) -> int:
        """Ids that stand for bytes of text."""
        return self.vocab_size - len(SPECIAL_TOKENS)

    @pydantic.model_validator(mode="after")
    def _check_vocab_size(self) -> "TokenizerConfig":
        smallest = BYTE_VALUES + len(SPECIAL_TOKENS)
        if self.vocab_size < smallest:
            raise ConfigError(
                expected=f"`vocab_size` of at least {smallest}: {BYTE_VALUES} bytes and "
                f"{len(SPECIAL_TOKENS)} special tokens",
                found=str(self.vocab_size),
                fix="Raise `vocab_size`; 2048 suits the smallest models",
            )
        return self
