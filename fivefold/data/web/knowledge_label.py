"""Labels of world knowledge for a run's own pages: by rule, or by a model behind an endpoint.

GLM-5 (section 2.2) trains its classifier on entries of Wikipedia and on pages that a language model
labelled. Entries alone teach what an encyclopaedia looks like, and no page of a crawl looks like
one; labelled pages teach what facts look like there. A mark is 0 to 5, a point for each thing that
holds; pages with a high mark join the positives, those with a low one the negatives, and what lies
between is not learned from.

The rule sees names, years, the past tense, whether a text speaks to its reader and whether it is
prose: narrative about the world, in English. It is a weak labeller, for runs without a model.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.words import unicode_words
from fivefold.data.long.scorer import Scorer
from fivefold.data.maths.config import ScorerConfig
from fivefold.data.maths.endpoint import EndpointScorer
from fivefold.data.web.embed import cut_windows
from fivefold.data.web.fact_density import FULL_NAME, PAST

RUBRIC = """Judge how much knowledge of the world a text holds. Start at 0, add 1 for each of \
these that holds, up to 5:
- it is about people, places, organisations, events, works, organisms, substances or inventions;
- it states facts about them that can be checked: names, dates, quantities, causes;
- a reader could not infer most of these facts from general understanding;
- the facts stand for themselves: they are not steps to follow, opinions, or the use of one program;
- an encyclopaedia of everything would hold most of them."""

_WINDOWS = 3
_YEAR = re.compile(r"(?<![\w.,/-])1[4-9]\d\d(?![\w/-])|(?<![\w.,/-])20[0-4]\d(?![\w/-])")
_ADDRESS = re.compile(
    r"\b(?:you|your|please|click|select|choose|press|see|must|should|returns?|specif(?:y|ies|ied)"
    r"|default|option|parameter|value|function|file|table|column)\b",
    re.IGNORECASE,
)
_SENTENCE_LINE = re.compile(r"[.!?]['\")\]]?\s*$")
_MIN_SENTENCE_WORDS = 12
_MIN_WORDS = 200
"""Words below which a text counts as so long: two names in a caption are no rate."""
_FULL_NAMES, _FULL_YEARS, _FULL_PAST, _FULL_ADDRESS = 1.0, 0.3, 2.0, 4.0
"""Occurrences in a hundred words that give the whole point, or take it."""


def excerpt(text: str, characters: int) -> str:
    """Return head, middle and tail of a text, about `characters` of it in all."""
    return "\n...\n".join(cut_windows(text, _WINDOWS, characters // _WINDOWS))


def rule_mark(text: str) -> float:
    """Return how much knowledge of the world a text holds, 0 to 5."""
    words = len(unicode_words(text))
    if not words:
        return 0.0
    hundreds = max(_MIN_WORDS, words) / 100
    names = len(set(FULL_NAME.findall(text))) / hundreds
    years = len(_YEAR.findall(text)) / hundreds
    past = len(PAST.findall(text)) / hundreds
    lines = [line for line in text.split("\n") if line.strip()]
    prose = sum(len(line) for line in lines if _is_sentence(line)) / sum(map(len, lines))
    parts = (
        min(1.0, names / _FULL_NAMES),
        min(1.0, years / _FULL_YEARS),
        min(1.0, past / _FULL_PAST),
    )
    address = len(_ADDRESS.findall(text)) / hundreds
    manner = prose + max(0.0, 1 - address / _FULL_ADDRESS)
    # Prose about nothing in particular is no knowledge, however well it reads.
    return sum(parts) + min(1.0, sum(parts[:2])) * manner


def _is_sentence(line: str) -> bool:
    return len(line.split()) >= _MIN_SENTENCE_WORDS and bool(_SENTENCE_LINE.search(line))


class KnowledgeRule:
    """The rule as a `Scorer`."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the marks, 0 to 5."""
        return np.array([rule_mark(text) for text in texts], dtype=np.float64)


def open_labeller(config: ScorerConfig) -> Scorer:
    """Open who labels.

    Raises:
        MissingFileError: the endpoint's key is not there.
    """
    return EndpointScorer(config, rubric=RUBRIC) if config.kind == "endpoint" else KnowledgeRule()
