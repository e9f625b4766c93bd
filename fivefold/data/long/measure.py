"""Sizes of texts in tokens, by a tokenizer, or by a fixed number of characters where there is none.

Contexts are counted in tokens, texts come before any tokenizer: a recipe may run before one has
been trained, and then says so.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fivefold.text.tokenizer import Tokenizer, load_tokenizer


class Ruler:
    """Measures and cuts texts."""

    def __init__(self, tokenizer: Tokenizer | None, characters_per_token: float) -> None:
        """Measure by `tokenizer`; None counts characters."""
        self.tokenizer = tokenizer
        self._characters_per_token = characters_per_token

    def room(self, context_tokens: int) -> int:
        """Return the tokens of text that fill a row: context and one more, less the framing."""
        framing = len(self.tokenizer.frame_document([])) if self.tokenizer else 0
        return context_tokens + 1 - framing

    def sizes(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the tokens of each text."""
        if self.tokenizer:
            lengths = [len(ids) for ids in self.tokenizer.encode_batch(texts)]
        else:
            lengths = [-(-len(text) // self._characters_per_token) for text in texts]
        return np.array(lengths, dtype=np.int64)

    def size(self, text: str) -> int:
        """Return the tokens of a text."""
        return int(self.sizes([text])[0])

    def cut(self, text: str, tokens: int) -> str:
        """Return the longest beginning found of at most `tokens` tokens."""
        if not self.tokenizer:
            return text[: int(tokens * self._characters_per_token)]
        ids = self.tokenizer.encode(text)
        if len(ids) <= tokens:
            return text
        keep = tokens
        while keep > 0:
            # A cut inside a character leaves bytes that are no text, and another end may be
            # tokenised otherwise.
            beginning = self.tokenizer.decode_bytes(ids[:keep]).decode("utf-8", errors="ignore")
            excess = len(self.tokenizer.encode(beginning)) - tokens
            if excess <= 0:
                return beginning
            keep -= excess
        return ""


def open_ruler(tokenizer: str, characters_per_token: float) -> Ruler:
    """Return the ruler of a tokenizer's directory; of characters for an empty path.

    Raises:
        MissingFileError, CorruptFileError, MismatchError: as `load_tokenizer`.
    """
    loaded = load_tokenizer(Path(tokenizer).expanduser()) if tokenizer else None
    return Ruler(loaded, characters_per_token)
