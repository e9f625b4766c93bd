"""Who scores: the `Scorer` that a config names, opened in the process that uses it.

Two of them ask a model of our own through `open_model`, which a room above fills in. `ratio` is a
likelihood ratio: bits per byte by a model of text at large less those by a model that knows good
text, so that more is better (DSIR and Moore-Lewis's cross-entropy difference). `rubric` shows the
model the text and takes the expected mark over the digits 0 to 5 as it would continue.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fivefold.data.long.scorer import BitsPerByte, Scorer, TokenModel, open_model
from fivefold.data.maths.config import ScorerConfig
from fivefold.data.maths.endpoint import RUBRIC, EndpointScorer
from fivefold.data.maths.head import read_head
from fivefold.data.maths.rule import RuleScorer

_WINDOWS = 3
_QUESTION = f"\n\n{RUBRIC}\nScore: "
_MARKS = range(6)


def open_scorer(config: ScorerConfig) -> Scorer:
    """Open the scorer that a config names.

    Raises:
        ConfigError: a model that cannot be opened.
        MissingFileError, CorruptFileError: a head or key that is not there, or is none.
    """
    if config.kind == "rule":
        return RuleScorer()
    if config.kind == "head":
        return read_head(Path(config.head).expanduser())
    if config.kind == "endpoint":
        return EndpointScorer(config)
    model = open_model(config.model)
    if config.kind == "rubric":
        return PromptedRubric(model)
    return LikelihoodRatio(model, open_model(config.general))


class LikelihoodRatio:
    """Scores texts by the bits per byte that a model of good text saves."""

    def __init__(self, good: TokenModel, general: TokenModel) -> None:
        """Take the model that knows good text, and the one of text at large."""
        self._good, self._general = BitsPerByte(good, _WINDOWS), BitsPerByte(general, _WINDOWS)

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return bits per byte saved; NaN for a text of fewer than two tokens."""
        return self._general.score(texts) - self._good.score(texts)


class PromptedRubric:
    """Scores texts by the mark that a model would give, 0 to 5."""

    def __init__(self, model: TokenModel) -> None:
        """Ask `model`; a text that does not fit its context is cut."""
        self._model = model
        self._question = model.tokenizer.encode(_QUESTION)
        self._digits = [model.tokenizer.encode(str(mark)) for mark in _MARKS]

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the expected marks; NaN where the question leaves no room for the text."""
        return np.array([self._score(text) for text in texts], dtype=np.float64)

    def _score(self, text: str) -> float:
        tail = max(map(len, self._digits))
        room = self._model.context_tokens - len(self._question) - tail
        ids = self._model.tokenizer.encode(text)[: max(0, room)]
        if not ids:
            return math.nan
        rows = [[*ids, *self._question, *digits] for digits in self._digits]
        logprobs = [
            float(np.sum(scores.logprob[-len(digits) :]))
            for scores, digits in zip(self._model.score_tokens(rows), self._digits, strict=True)
        ]
        weights = np.exp(np.array(logprobs) - max(logprobs))
        return float((weights * np.array(_MARKS)).sum() / weights.sum())
