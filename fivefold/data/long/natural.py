"""Natural long documents: long enough, not repeating themselves, neither garbled nor mechanical.

Self-overlap is the share of a document's n-grams that stood in it before: logs, tables and
generated reference pages are long without asking for a long memory. Bits per byte under a model
cut both tails of the long documents: the high one is noise, the low one boilerplate; thresholds
are quantiles, for they belong to one model (GLM-5 report, section 2.3: perplexity, duplication and
length filters).

Its dependencies are rare words that come back: from the chunk in which one first stands to the
last that has it.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from fivefold.data.curate.grams import Grams
from fivefold.data.curate.lexicon import unicode_lexicon
from fivefold.data.document import Document
from fivefold.data.long.config import LongConfig, NaturalConfig
from fivefold.data.long.gap import Statistics
from fivefold.data.long.library import Library
from fivefold.data.long.made import Made, Unit, make_sequence, single_units
from fivefold.data.long.vectors import content_words

_RARE_CHUNKS = 20
"""A word that stands in more chunks is no sign of a dependency."""


def self_overlap(text: str, words: int) -> float:
    """Return the share of word n-grams that stood earlier in the text; 0 for a short text."""
    found = unicode_lexicon().read(text.lower())
    if len(found) < words:
        return 0.0
    hashes = Grams(found).hashes(words)
    return 1 - len(np.unique(hashes)) / len(hashes)


def length_reason(text: str, tokens: int, config: NaturalConfig) -> str:
    """Return why a document is not a long one; empty if it is."""
    if tokens < config.min_tokens:
        return "natural.short"
    if self_overlap(text, config.overlap_words) > config.max_self_overlap:
        return "natural.self_overlap"
    return ""


def score_bounds(scores: list[float], tails: float) -> tuple[float, float]:
    """Return the least and greatest bits per byte that stay."""
    finite = [score for score in scores if not math.isnan(score)]
    if not finite:
        return -math.inf, math.inf
    low, high = np.quantile(np.array(finite), [tails, 1 - tails])
    return float(low), float(high)


class Natural:
    """Keeps documents as they are."""

    name = "natural"

    def __init__(
        self, library: Library, config: LongConfig, scores: Mapping[str, float] | None
    ) -> None:
        """Judge by `scores`, bits per byte by document id, where there are any."""
        assert config.natural
        self._library = library
        self._config = config.natural
        self._scores = scores
        self._bounds = score_bounds(list((scores or {}).values()), config.natural.perplexity_tails)
        self.statistics = Statistics()

    def units(self, rank: int, world_size: int) -> Iterator[Unit]:
        """See `Method`."""
        return single_units(self._library.documents, rank, world_size)

    def make(self, unit: Unit) -> list[Made]:
        """See `Method`."""
        document, place = unit.documents[0], unit.places[0]
        tokens = int(self._library.document_tokens[place])
        reason = length_reason(document.text, tokens, self._config)
        if not reason and self._scores is not None:
            reason = self._judge_score(document)
        if reason:
            return [Made(document, reason)]
        self.statistics.enter_sequence(tokens)
        self._count_returns(place, tokens)
        meta = {**document.meta, "origin": document.source}
        if self._scores is not None:
            meta["bits_per_byte"] = round(self._scores[document.id], 4)
        sequence = make_sequence(self.name, document.id, document.text, document.lang, meta)
        return [Made(document, sequence=sequence)]

    def _judge_score(self, document: Document) -> str:
        assert self._scores is not None
        low, high = self._bounds
        if math.isnan(self._scores[document.id]):
            return "natural.unscored"
        if self._scores[document.id] < low:
            return "natural.low_perplexity"
        return "natural.high_perplexity" if self._scores[document.id] > high else ""

    def _count_returns(self, place: int, tokens: int) -> None:
        library = self._library
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        begin = 0
        for chunk in library.chunks(place):
            for word in set(content_words(library.text(chunk))):
                if 2 <= library.frequencies.get(word, 0) <= _RARE_CHUNKS:
                    first.setdefault(word, begin)
                    last[word] = begin
            begin += int(library.tokens[chunk])
        for word in sorted(first):
            if last[word] > first[word]:
                self.statistics.enter_dependency(first[word], last[word], tokens)
