"""The words of a text as arrays of numbers: lengths, hashes, kinds.

Rules count words and compare runs of them; none needs the strings, unless a page is dropped and its
fault is shown. White-space chunks repeat so much (Zipf) that their words are split and measured
once for each distinct chunk and then looked up: one dictionary pass over the chunks, and a gather
for each array.

A word's letters have a polynomial hash, the sum of c_k * B^k over its characters modulo 2^64; the
hash of words written one after the other follows from those of the words and B^length.

Surprise: what was learnt is forgotten when it grows beyond a bound, and changes no result: all
numbers are functions of the word's characters alone, the same in every process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.character import LETTER, MARK, kind_table, text_to_codes
from fivefold.data.curate.words import split_chunk, unicode_segments, unicode_words

Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
_STIR = np.uint64(0xBF58476D1CE4E5B9)
_MIX = np.uint64(0x94D049BB133111EB)
_WORDS_AT_ONCE = 1 << 14
_MOST_CHUNKS = 1 << 17
"""Distinct chunks that are remembered; they take about 20 MB."""
_CHUNK_CHARACTERS = 24
"""A text with a greater mean length of chunks has no spaces between its words."""


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text in their order."""

    table: Hashes
    """[4, N]: what the properties name, as 64-bit integers."""
    chunks: Sequence[str]
    """What the words were split from, in order."""
    ends: NDArray[np.int64]
    """Words up to and including each chunk."""
    split: Callable[[str], Sequence[str]]
    """A chunk to its words."""

    def __len__(self) -> int:
        return self.table.shape[1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Characters of each word."""
        return self.table[0].view(np.int64)

    @property
    def letters(self) -> Hashes:
        """Polynomial hash of its characters."""
        return self.table[1]

    @property
    def powers(self) -> Hashes:
        """B^length."""
        return self.table[2]

    @property
    def kinds(self) -> NDArray[np.uint64]:
        """Bits: LETTER if a character is a letter, MARK if all characters are punctuation."""
        return self.table[3]

    def spell(self, begin: int, end: int) -> list[str]:
        """Return the words from `begin` to before `end` as strings."""
        first, last = np.searchsorted(self.ends, [begin, end - 1], side="right").tolist()
        words = [word for chunk in self.chunks[first : last + 1] for word in self.split(chunk)]
        before = int(self.ends[first - 1]) if first else 0
        return words[begin - before : end - before]

    def hashes(self) -> Hashes:
        """Return well mixed hashes, equal for equal words."""
        mixed = self.letters ^ (self.letters >> np.uint64(32))
        mixed *= _MIX
        mixed ^= mixed >> np.uint64(29)
        return mixed


@lru_cache(maxsize=8)
def _power_table(count: int) -> Hashes:
    values = np.full(count, _BASE, dtype=np.uint64)
    values[0] = 1
    return np.multiply.accumulate(values)


def _powers(count: int) -> Hashes:
    """Return at least so many powers of B, out of tables whose sizes are powers of two."""
    return _power_table(1 << max(6, (count - 1).bit_length()))


def measure_words(words: Sequence[str]) -> Words:
    """Measure words, none of them empty."""
    return Words(_measure(words), words, np.arange(1, len(words) + 1), lambda word: [word])


def _measure(words: Sequence[str]) -> Hashes:
    blocks = [
        _measure_block(words[begin : begin + _WORDS_AT_ONCE])
        for begin in range(0, len(words), _WORDS_AT_ONCE)
    ]
    return blocks[0] if len(blocks) == 1 else np.concatenate([_EMPTY, *blocks], axis=1)


def _measure_block(words: Sequence[str]) -> Hashes:
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    codes = text_to_codes("".join(words))
    begins = np.cumsum(lengths) - lengths
    terms = codes.astype(np.uint64)
    terms += np.uint64(1)
    terms *= _STIR
    terms ^= terms >> np.uint64(31)
    powers = _powers(int(lengths.max()) + 1)
    terms *= powers[np.arange(len(codes)) - np.repeat(begins, lengths)]
    kinds = kind_table()[codes]
    table = np.empty((4, len(words)), dtype=np.uint64)
    table[0] = lengths
    np.add.reduceat(terms, begins, out=table[1])
    table[2] = powers[lengths]
    table[3] = np.bitwise_or.reduceat(kinds, begins) & np.uint8(LETTER)
    table[3] |= np.bitwise_and.reduceat(kinds, begins) & np.uint8(MARK)
    return table


_EMPTY = np.zeros((4, 0), dtype=np.uint64)


class _Numbers(dict[str, int]):
    """Numbers chunks in the order in which they are first asked for."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, chunk: str) -> int:
        number = self[chunk] = len(self)
        self.new.append(chunk)
        return number


class Lexicon:
    """The words of white-space chunks, by a way of splitting them."""

    def __init__(self, split: Callable[[str], Sequence[str]]) -> None:
        """Take what splits a chunk into words, perhaps none."""
        self.split = split
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._spans = np.zeros((2, 0), dtype=np.int64)
        """Of each chunk: its first word, and how many there are."""
        self._words = _EMPTY
        self._word_count = 0

    def read(self, text: str) -> Words:
        """Return the words of all chunks of a text."""
        chunks = text.split()
        if len(text) >= _CHUNK_CHARACTERS * len(chunks):
            parts = [self.split(chunk) for chunk in chunks]
            table = _measure([word for words in parts for word in words])
            ends = np.cumsum(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)))
            return Words(table, chunks, ends, self.split)
        if len(self._numbers) > _MOST_CHUNKS:
            self._forget()
        numbers = np.fromiter(
            map(self._numbers.__getitem__, chunks), dtype=np.int64, count=len(chunks)
        )
        if self._numbers.new:
            self._learn()
        firsts, counts = self._spans.take(numbers, axis=1)
        ends = np.cumsum(counts)
        places = np.arange(ends[-1])
        places += np.repeat(firsts - ends + counts, counts)
        return Words(self._words.take(places, axis=1), chunks, ends, self.split)

    def _learn(self) -> None:
        """Measure the words of the chunks that were never seen."""
        parts = [self.split(chunk) for chunk in self._numbers.new]
        new = _measure([word for words in parts for word in words])
        begin, end = len(self._numbers) - len(parts), len(self._numbers)
        self._spans = _grown(self._spans, end)
        counts = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        self._spans[0, begin:end] = self._word_count + np.cumsum(counts) - counts
        self._spans[1, begin:end] = counts
        end = self._word_count + new.shape[1]
        self._words = _grown(self._words, end)
        self._words[:, self._word_count : end] = new
        self._word_count = end
        self._numbers.new.clear()


def _grown(table: NDArray, count: int) -> NDArray:
    """Return the table with room for `count` columns."""
    if count <= table.shape[1]:
        return table
    more = np.zeros((len(table), max(1024, 2 * count)), dtype=table.dtype)
    more[:, : table.shape[1]] = table
    return more


@cache
def treebank_lexicon() -> Lexicon:
    """Return what reads texts as `treebank_words`."""
    return Lexicon(split_chunk)


@cache
def unicode_lexicon() -> Lexicon:
    """Return what reads texts as `unicode_words`."""
    return Lexicon(unicode_words)


@cache
def segment_lexicon() -> Lexicon:
    """Return what reads texts as `unicode_segments`, line ends left out."""
    return Lexicon(unicode_segments)
