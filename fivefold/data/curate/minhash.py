"""MinHash signatures: short vectors that agree in as many places as two documents share shingles.

A shingle is a run of n lower-case words. Its 64-bit hash x goes through K functions (a*x + b) mod
2^64 (a odd), of which the smallest value's upper half is kept; two documents agree in one place
with the probability of their Jaccard similarity J (Broder 1997), so that the share of agreeing
places estimates J with a standard error of sqrt(J(1-J)/K). Shingling and minima are numpy calls
over whole pages.

Surprise: hashes of shingles come from the same prefix sums as those of the repetition rules.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.config import MinHashConfig
from fivefold.data.curate.grams import Grams, Hashes
from fivefold.data.curate.words import unicode_words

_BLOCK = 256
"""Shingles at a time: 112 functions over 256 of them stay in the second-level cache."""


@lru_cache(maxsize=8)
def _functions(count: int, seed: int) -> tuple[Hashes, Hashes]:
    random = np.random.default_rng([seed, count])
    factors = random.integers(0, 1 << 64, size=(count, 1), dtype=np.uint64) | np.uint64(1)
    return factors, random.integers(0, 1 << 64, size=(count, 1), dtype=np.uint64)


def shingle_hashes(text: str, shingle_words: int) -> Hashes:
    """Return the distinct hashes of a text's shingles; a shorter text is one shingle."""
    words = unicode_words(text.lower())
    return np.unique(Grams(words).hashes(min(shingle_words, len(words)))) if words else _NONE


_NONE = np.zeros(0, dtype=np.uint64)


def signature(hashes: Hashes, config: MinHashConfig) -> NDArray[np.uint32]:
    """Return `bands * rows` minima of the hash functions; all ones for no shingles."""
    factors, offsets = _functions(config.bands * config.rows, config.seed)
    least = np.full(len(factors), np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashes), _BLOCK):
        values = factors * hashes[start : start + _BLOCK]
        values += offsets
        np.minimum(least, values.min(axis=1), out=least)
    return (least >> np.uint64(32)).astype(np.uint32)


def text_signature(text: str, config: MinHashConfig) -> NDArray[np.uint32]:
    """Return the signature of a text."""
    return signature(shingle_hashes(text, config.shingle_words), config)
