"""Repeated n-grams of words, counted without building them.

The words are laid end to end as code points, and a polynomial hash over a prefix sum gives the
hash of every run of n words in a handful of numpy calls: with S[j] the sum of c_k * B^k over the
first j characters (mod 2^64), the run from i to j has the hash (S[j] - S[i]) * B^-i. Runs are
equal when their hashes are; two different runs of one page collide with a probability of about n^2
/ 2^64.

Surprise: the 5- to 10-gram rule of datatrove walks the text and jumps over what it has counted, so
that it looks sequential; but only runs that occur twice can change its state, and they are few.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.character import text_to_codes

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_STIR = 0xBF58476D1CE4E5B9
_LOW_BITS = np.uint64(0xFFFF)

Hashes = NDArray[np.uint64]


@lru_cache(maxsize=32)
def _powers(factor: int, count: int) -> Hashes:
    """Return factor^0 .. factor^(count-1) modulo 2^64."""
    values = np.full(count, factor, dtype=np.uint64)
    values[0] = 1
    return np.multiply.accumulate(values)


def _power_slice(factor: int, count: int) -> Hashes:
    """Return the first powers out of a table whose size is a power of two, so that few are made."""
    return _powers(factor, 1 << max(10, (count - 1).bit_length()))[:count]


def _prefix_sums(text: str) -> Hashes:
    """Return S of the module's formula, one entry more than there are characters."""
    codes = text_to_codes(text).astype(np.uint64)
    codes += np.uint64(1)
    codes *= np.uint64(_STIR)
    codes ^= codes >> np.uint64(31)
    codes *= _power_slice(_BASE, len(codes))
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes, out=sums[1:])
    return sums


class Grams:
    """The runs of n words of one text."""

    def __init__(self, words: list[str]) -> None:
        """Lay the words out; `words` holds no empty one."""
        self.words = words
        self.lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        self.ends = np.cumsum(self.lengths)
        """Characters up to and including each word, without separators."""
        self._spaced_sums = _prefix_sums(" ".join(words) + " ")
        self._joined_sums: Hashes | None = None

    @property
    def characters(self) -> int:
        """Characters of all words."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def run_lengths(self, n: int) -> NDArray[np.int64]:
        """Return the characters of each run of n words, separators not counted."""
        lengths = self.ends[n - 1 :].copy()
        lengths[1:] -= self.ends[:-n]
        return lengths

    def hashes(self, n: int) -> Hashes:
        """Return a hash of each run of n words; equal for the same words only."""
        ends = self.ends + np.arange(1, len(self.ends) + 1)
        begins = ends - self.lengths - 1
        return self._hash(self._spaced_sums, begins, ends, n)

    def joined_hashes(self, n: int) -> Hashes:
        """Return a hash of each run of n words written without separators."""
        if self._joined_sums is None:
            self._joined_sums = _prefix_sums("".join(self.words))
        return self._hash(self._joined_sums, self.ends - self.lengths, self.ends, n)

    def _hash(
        self, sums: Hashes, begins: NDArray[np.int64], ends: NDArray[np.int64], n: int
    ) -> Hashes:
        count = len(self.words) - n + 1
        if count <= 0:
            return np.zeros(0, dtype=np.uint64)
        begins = begins[:count]
        powers = _power_slice(_INVERSE, int(begins[-1]) + 1)
        return (sums[ends[n - 1 :]] - sums[begins]) * powers[begins]


def repeated(hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the hashes stand that occur more than once, ascending, and a label for each.

    Equal hashes have equal labels.
    """
    ranked = np.sort(hashes)
    later = ranked[1:][ranked[1:] == ranked[:-1]]
    if not len(later):
        none = np.zeros(0, dtype=np.int64)
        return none, none
    values = later[np.append(True, later[1:] != later[:-1])]
    # A table of the lowest bits lets only few hashes through to the exact and slower search.
    is_likely = np.zeros(1 << 16, dtype=bool)
    is_likely[values & _LOW_BITS] = True
    places = np.flatnonzero(is_likely[hashes & _LOW_BITS])
    slots = np.searchsorted(values, hashes[places])
    slots[slots == len(values)] = 0
    is_found = values[slots] == hashes[places]
    return places[is_found], slots[is_found]


def most_frequent(hashes: Hashes) -> tuple[int, NDArray[np.int64]]:
    """Return the greatest number of equal hashes, and where such hashes stand, ascending.

    With a count of 1 the places are all of them.
    """
    places, labels = repeated(hashes)
    if not len(places):
        return 1, np.arange(len(hashes))
    counts = np.bincount(labels)
    most = int(counts.max())
    return most, places[counts[labels] == most]


def covered_characters(places: NDArray[np.int64], n: int, lengths: NDArray[np.int64]) -> int:
    """Return the characters of words inside any run that begins at `places`, each counted once."""
    if not len(places):
        return 0
    change = np.zeros(len(lengths) + 1, dtype=np.int64)
    change[places] += 1
    change[places + n] -= 1
    return int(lengths[np.cumsum(change[:-1]) > 0].sum())


def walked_characters(
    places: NDArray[np.int64], labels: NDArray[np.int64], n: int, lengths: NDArray[np.int64]
) -> int:
    """Return the characters of repeated runs found by walking on, jumping over each that is found.

    `places` and `labels` are those of `repeated`; `lengths` of all runs. A run is found where an
    earlier equal one was walked on; then the walk goes on n words later.
    """
    total, resume = 0, 0
    seen: set[int] = set()
    for place, label, length in zip(
        places.tolist(), labels.tolist(), lengths[places].tolist(), strict=True
    ):
        if place < resume:
            continue
        if label in seen:
            total += length
            resume = place + n
        else:
            seen.add(label)
    return total
