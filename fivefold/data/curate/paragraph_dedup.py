"""Repeated paragraphs and pages over a corpus: DCLM's rule `old-both`, as its tool BFF applies it.

A page is cut at line ends. Each paragraph's 13-grams (UAX 29 segments without white space) are
looked up in a Bloom filter: with more than 80% known the paragraph goes and teaches the filter
nothing; else it stays and all its n-grams are added. When more than 80% of the page's n-grams were
known, the page goes. Paragraphs with fewer words than the smallest n-gram are never tested and
always stay.

The first copy wins, so the result depends on the order of pages; the pipeline reads them in the
order of their ids. Surprise: paragraphs that stay teach the filter even when the page then goes.
"""

import logging
import re

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.bloom import BloomFilter
from fivefold.data.curate.config import BloomConfig
from fivefold.data.curate.grams import Grams
from fivefold.data.curate.lexicon import Hashes, segment_lexicon
from fivefold.data.curate.verdict import Edit, Verdict

logger = logging.getLogger(__name__)

_FULL = 0.55
"""Share of set bits; it is about one half when all expected n-grams are in."""
Groups = list[Hashes]
"""The n-grams of each paragraph."""


class ParagraphDedup:
    """The rule and what it has seen."""

    def __init__(self, config: BloomConfig) -> None:
        """Begin with nothing seen."""
        self.config = config
        self.filter = BloomFilter(config.expected_ngrams, config.false_positives)

    def judge(self, text: str) -> Verdict:
        """Return what is new in a text, and remember it."""
        groups = paragraph_ngrams(text, self.config)
        known = self._look_up_and_learn(groups)
        counts = np.array([len(group) for group in groups])
        threshold = self.config.threshold
        if known.sum() > threshold * counts.sum():
            return Verdict(text, "duplicate.page", _first_span(text, known > threshold * counts))
        is_gone = known > threshold * counts
        if not is_gone.any():
            return Verdict(text)
        return _without(text, is_gone)

    def warn_if_full(self) -> None:
        """Say so where more was seen than the filter has room for, and new text looks known."""
        share = self.filter.fill_share()
        if share > _FULL:
            logger.warning(
                "%.0f%% of the Bloom filter is set: it holds more than %s n-grams, and drops new "
                "text as repeated; raise `bloom.expected_ngrams` and run again",
                100 * share,
                f"{self.config.expected_ngrams:,}",
            )

    def _look_up_and_learn(self, groups: Groups) -> NDArray[np.int64]:
        """Return how many n-grams of each paragraph were known; add those of paragraphs that stay.

        One look for the whole page, unless it repeats itself: then an earlier paragraph decides
        about a later one.
        """
        known = np.zeros(len(groups), dtype=np.int64)
        filled = [index for index, group in enumerate(groups) if len(group)]
        if not filled:
            return known
        whole = np.concatenate([groups[index] for index in filled])
        counts = np.array([len(groups[index]) for index in filled])
        starts, limit = np.cumsum(counts) - counts, self.config.threshold
        places = self.filter.places(whole)
        if len(np.unique(whole)) == len(whole):
            found = np.add.reduceat(self.filter.are_set(places).astype(np.int64), starts)
            known[filled], is_new = found, found <= limit * counts
            if is_new.any():
                self.filter.set_all(places[:, np.repeat(is_new, counts)])
            return known
        ends = [*starts[1:].tolist(), len(whole)]
        for index, begin, end in zip(filled, starts.tolist(), ends, strict=True):
            own = places[:, begin:end]
            known[index] = self.filter.are_set(own).sum()
            if known[index] <= limit * (end - begin):
                self.filter.set_all(own)
        return known


def paragraph_ngrams(text: str, config: BloomConfig) -> Groups:
    """Return the hashes of the n-grams of each line of a text."""
    words = segment_lexicon().read(text)
    chunks = np.cumsum([len(line.split()) for line in text.split("\n")])
    ends = np.append(0, words.ends)[chunks].tolist()
    grams, size = Grams(words), config.max_ngram_words
    longest = grams.hashes(size)
    groups, begin = [], 0
    for end in ends:
        count = end - begin
        if count >= size:
            groups.append(longest[begin : end - size + 1])
        elif count >= config.min_ngram_words:
            groups.append(grams.hashes(count)[begin : begin + 1])
        else:
            groups.append(longest[:0])
        begin = end
    return groups


def _line_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of lines; each after the first begins with the line end before it."""
    begins = [0, *(match.start() for match in re.finditer("\n", text))]
    return list(zip(begins, [*begins[1:], len(text)], strict=True))


def _first_span(text: str, is_gone: NDArray[np.bool_]) -> tuple[int, int] | None:
    places = np.flatnonzero(is_gone)
    return _line_spans(text)[int(places[0])] if len(places) else None


def _without(text: str, is_gone: NDArray[np.bool_]) -> Verdict:
    spans = _line_spans(text)
    kept = "".join(
        text[b:e] for (b, e), gone in zip(spans, is_gone.tolist(), strict=True) if not gone
    )
    edits = tuple(
        Edit("duplicate.paragraph", b, e, text[b:e])
        for (b, e), gone in zip(spans, is_gone.tolist(), strict=True)
        if gone
    )
    if not kept.strip():
        return Verdict(text, "duplicate.page", spans[0])
    return Verdict(kept, edits=edits)
