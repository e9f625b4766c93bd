"""How densely a text states facts: rates that no vector shows.

Names, numbers, dates, definitions, words that few texts have, lists, how often the reader is
addressed, which pages that state facts do seldom, names of several words, and the past tense. Rates
are for each hundred words, on a log scale. Patterns are of English; in Chinese only numbers, lists
and rare words say anything. All ours: the GLM-5 report only says that its classifier looks for
world knowledge.
"""

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.words import unicode_words
from fivefold.data.long.vectors import content_words

FEATURES = (
    "names",
    "numbers",
    "dates",
    "definitions",
    "rarity",
    "lists",
    "address",
    "people",
    "past",
)
"""What the numbers of `fact_density` are, in order."""

# A capital within a sentence: not after its end, a colon or a line end.
_NAME = re.compile(r"(?<=[^\s.!?:\n] )[A-Z][a-z]{2,}\b")
_NUMBER = re.compile(r"\b\d[\d,.]*")
_MONTHS = "January|February|March|April|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b(?:1\d{{3}}|20[0-4]\d)\b|\b(?:{_MONTHS}) \d|\bcentury\b|\bB\.?C\.?\b")
_DEFINITION = re.compile(
    r"\b(?:is|was|are|were) (?:an?|the|any|one of)\b"
    r"|\b(?:known as|refers? to|defined as|consists? of|born in|native to|located in)\b"
    r"|^[^.:\n]{2,60}: (?:\(|an?\b|the\b|any\b|[a-z]+ (?:of|in|with|who|that)\b)",
    re.MULTILINE,
)
_LIST_LINE = re.compile(r"^\s*(?:[-*•·]|\d+[.)]|.*\|.*\|)\s", re.MULTILINE)
_ADDRESS = re.compile(
    r"\b(?:you|your|we|I|my|please|click|select|choose|press|fixed|added|removed)\b",
    re.IGNORECASE,
)
FULL_NAME = re.compile(
    r"(?<![.!?:\n] )(?<=[^\n] )[A-Z][a-z]+(?: (?:of|the|de|van|von|and))*(?: [A-Z][a-z]+)+"
)
"""A name of several words within a sentence: of a person, a place, an organisation."""
PAST = re.compile(
    r"\b(?:was|were|had|became|wrote|said|argued|began|led|took|gave|founded|born|died|fought|held"
    r"|invented|discovered|published|called|described|developed by|won|lost|built)\b"
)


def fact_density(text: str, frequencies: Mapping[str, int], count: int) -> NDArray[np.float64]:
    """Return float64 [len(FEATURES)]; rarity is the mean idf of a text's words over `count` texts.

    `frequencies` tells in how many of those texts a word stands.
    """
    words = max(1, len(unicode_words(text)))
    lines = max(1, sum(1 for line in text.split("\n") if line.strip()))
    patterns = (_NAME, _NUMBER, _DATE, _DEFINITION)
    rates = [100 * len(pattern.findall(text)) / words for pattern in patterns]
    known = content_words(text)
    idf = [np.log((1 + count) / (1 + frequencies.get(word, 0))) for word in known]
    address = 100 * len(_ADDRESS.findall(text)) / words
    told = [
        100 * count / words
        for count in (len(set(FULL_NAME.findall(text))), len(PAST.findall(text)))
    ]
    lists = len(_LIST_LINE.findall(text)) / lines
    return np.array(
        [
            *np.log1p(rates),
            float(np.mean(idf)) if idf else 0.0,
            lists,
            np.log1p(address),
            *np.log1p(told),
        ]
    )
