"""Config of decontamination, in a file of its own because every recipe takes it.

Source: GPT-3 (arXiv:2005.14165, appendix C) for 13-grams, for the rule that a run in more than 10
texts is nobody's, and for the margin of 200 characters. Fields without a source are ours.
"""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.errors import ConfigError


class DecontaminationConfig(Config):
    """Which benchmarks a corpus must not hold, and what becomes of documents that hold an item."""

    benchmarks: tuple[str, ...] = pydantic.Field(default=("own", "public"), min_length=1)
    """Files of benchmark items (JSON, JSON lines, CSV, TSV, Parquet, text), folders of them, names
    of the catalogue; `own`: the problems that Fivefold's stages are examined on; `public`: what of
    the catalogue `fivefold data get --benchmarks` brought into the cache."""
    own: str = "fivefold.recipes.own_benchmark:own_items"
    """`MODULE:FUNCTION` that returns the items of `own`."""
    cache_dir: Runtime[str] = "~/.cache/fivefold"
    """Directory of downloads, in which benchmarks of the catalogue are looked for."""
    ngram_words: int = pydantic.Field(default=13, ge=2)
    """Words of a run that counts as copied (GPT-3: 13)."""
    min_words: int = pydantic.Field(default=8, ge=2)
    """Items of fewer words are not looked for; those up to `ngram_words` only as a whole."""
    max_items: int = pydantic.Field(default=10, ge=1)
    """A run that stands in more items than these is boilerplate (GPT-3: 10)."""
    prompt_share: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Share of a question's runs that must be found where no run with its answer is."""
    policy: Literal["drop", "cut"] = "drop"
    """`drop`: the document goes; `cut`: the item with its margin goes, the rest stays. A text with
    special tokens in it goes in any case."""
    margin_characters: int = pydantic.Field(default=200, ge=0)
    """Characters on both sides that go with an item that is cut (GPT-3: 200)."""
    min_left: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Share of a document that must be left by cuts; otherwise it goes as a whole."""

    @pydantic.model_validator(mode="after")
    def _check_words(self) -> "DecontaminationConfig":
        if self.min_words > self.ngram_words:
            raise ConfigError(
                expected="`min_words` of at most `ngram_words`",
                found=f"{self.min_words} above {self.ngram_words}",
                fix="Lower `min_words`",
            )
        return self
