"""What this room asks of models, as protocols: numbers for texts, entropies for tokens, vectors.

The room imports no torch. A model comes in as a factory, `MODULE:FUNCTION` and a directory, which
is a string in a config, so that it travels to worker processes and each opens the model itself.
Any scorer fits: a rule, a head over vectors, our own model, an endpoint.

Surprise: row[0] of a sequence is predicted from nothing, so its two numbers are NaN, not 0, and a
sum that forgets this shows it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fivefold.data.factory import load_factory
from fivefold.data.long.config import ModelSource
from fivefold.text.tokenizer import Tokenizer


class Scorer(Protocol):
    """Gives each text a number; what it means, and which end is better, is the scorer's."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return one number for each text, float64 [texts]."""
        ...


@dataclass(frozen=True)
class TokenScores:
    """What a model says of each token of a row, given those before it; NaN at place 0."""

    entropy: NDArray[np.float32]
    """Nats of the distribution from which the token would be drawn: [tokens]."""
    logprob: NDArray[np.float32]
    """Nats, of the token that stands there: [tokens]."""


class TokenModel(Protocol):
    """A language model as this room sees it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary that its ids belong to."""
        ...

    @property
    def context_tokens(self) -> int:
        """Longest row that it takes."""
        ...

    def score_tokens(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
        """Score each row by itself."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors whose inner product says how similar they are."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 [texts, dimensions], each of length 1, or 0 where nothing is known."""
        ...


def open_model(source: ModelSource) -> TokenModel:
    """Open the model that a config names.

    Raises:
        ConfigError: no such module or function.
        FivefoldError: as the factory does.
    """
    return load_factory(source.factory, "model.factory")(source.checkpoint)


class BitsPerByte:
    """Scores texts by a model's bits per byte over a few windows; lower is more predictable."""

    def __init__(self, model: TokenModel, windows: int) -> None:
        """Measure at most `windows` windows of the model's context, evenly spread over a text."""
        self._model = model
        self._windows = windows
        self._bytes = model.tokenizer.token_bytes()

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return bits per byte; NaN for a text of fewer than two tokens."""
        return np.array([self._score(text) for text in texts], dtype=np.float64)

    def _score(self, text: str) -> float:
        ids, size = self._model.tokenizer.encode(text), self._model.context_tokens
        last = max(0, len(ids) - size)
        count = min(self._windows, -(-len(ids) // size))
        begins = sorted({round(last * k / max(1, count - 1)) for k in range(count)})
        rows = [ids[begin : begin + size] for begin in begins]
        rows = [row for row in rows if len(row) > 1]
        nats = sum(-float(np.nansum(s.logprob)) for s in self._model.score_tokens(rows))
        size_bytes = sum(int(self._bytes[row[1:]].sum()) for row in rows)
        return nats / math.log(2) / size_bytes if size_bytes else math.nan
