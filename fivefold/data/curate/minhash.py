"""MinHash signatures: short vectors that agree in as many places as two documents share shingles.

A shingle is a run of n lower-case words. The upper half x of its 64-bit hash goes through K
functions (a*x + b) mod 2^32 (a odd), of which the smallest value is kept; two documents agree in
one place with the probability of their Jaccard similarity J (Broder 1997), so that the share of
agreeing places estimates J with a standard error of sqrt(J(1-J)/K). Shingling and minima are numpy
calls over whole pages.

Surprise: half a hash is enough. Two of a page's shingles share it with a probability of n^2 / 2^33,
and products of 32 bits take a fifth of the time of those of 64 on processors without AVX-512.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.config import MinHashConfig
from fivefold.data.curate.grams import Grams
from fivefold.data.curate.lexicon import Hashes, unicode_lexicon

Values = NDArray[np.uint32]

_BLOCK = 1024
"""Shingles at a time: 112 functions over them take half a megabyte."""


NO_SHINGLES = np.iinfo(np.uint32).max
"""Each value of a signature of no shingles."""


@lru_cache(maxsize=8)
def _functions(count: int, seed: int) -> tuple[Values, Values]:
    random = np.random.default_rng([seed, count])
    factors = random.integers(0, 1 << 32, size=(count, 1), dtype=np.uint32) | np.uint32(1)
    return factors, random.integers(0, 1 << 32, size=(count, 1), dtype=np.uint32)


def shingle_hashes(text: str, shingle_words: int) -> Hashes:
    """Return the distinct hashes of a text's shingles; a shorter text is one shingle."""
    return np.unique(_shingles(text, shingle_words))


def _shingles(text: str, shingle_words: int) -> Hashes:
    words = unicode_lexicon().read(text.lower())
    return Grams(words).hashes(max(1, min(shingle_words, len(words))))


def signature(hashes: Hashes, config: MinHashConfig) -> Values:
    """Return `bands * rows` minima of the hash functions; all ones for no shingles."""
    factors, offsets = _functions(config.bands * config.rows, config.seed)
    halves = (hashes >> np.uint64(32)).astype(np.uint32)
    least = np.full(len(factors), NO_SHINGLES, dtype=np.uint32)
    for start in range(0, len(halves), _BLOCK):
        values = factors * halves[start : start + _BLOCK]
        values += offsets
        np.minimum(least, values.min(axis=1), out=least)
    return least


def text_signature(text: str, config: MinHashConfig) -> Values:
    """Return the signature of a text."""
    # Copies of a shingle cost less than it does to find them, and change no minimum.
    return signature(_shingles(text, config.shingle_words), config)
