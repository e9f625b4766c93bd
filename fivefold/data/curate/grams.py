"""Repeated n-grams of words, counted without building them.

From the hashes of single words those of all runs of n words follow by halves: with H_a the hashes
of runs of a words, H_(a+b)[i] = H_a[i] * C^b + H_b[i+a] (mod 2^64), a handful of numpy calls for
any n; those of their letters follow word by word. Runs are equal when their hashes are; two
different runs of one page collide with a probability of about n^2 / 2^64.

Surprise: the 5- to 10-gram rule of datatrove walks the text and jumps over what it has counted, so
that it looks sequential; but only runs that occur twice can change its state, and they are few.
"""

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.lexicon import Hashes, Words

_FACTOR = 0xD6E8FEB86659FD93
_LOW_BITS = np.uint64(0x1FFF)


class Grams:
    """The runs of n words of one text."""

    def __init__(self, words: Words) -> None:
        """Take the words of a text."""
        self.words = words
        self.lengths = words.lengths
        self.ends = np.cumsum(self.lengths)
        """Characters up to and including each word, without separators."""
        self._hashes = {1: words.hashes()}
        self._joined = {1: words.letters}

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
        if n > len(self.words):
            return np.zeros(0, dtype=np.uint64)
        if n not in self._hashes:
            first, second = self.hashes(n // 2), self.hashes(n - n // 2)
            factor = np.uint64(pow(_FACTOR, n - n // 2, 1 << 64))
            self._hashes[n] = first[: len(self.words) - n + 1] * factor
            self._hashes[n] += second[n // 2 :]
        return self._hashes[n]

    def joined_hashes(self, n: int) -> Hashes:
        """Return a hash of each run of n words written without separators."""
        if n > len(self.words):
            return np.zeros(0, dtype=np.uint64)
        start = max(known for known in self._joined if known <= n)
        hashes, count = self._joined[start], len(self.words)
        for size in range(start + 1, n + 1):
            hashes = self.words.powers[: count - size + 1] * hashes[1:]
            hashes += self.words.letters[: count - size + 1]
        self._joined[n] = hashes
        return hashes


def most_that_pass(characters: int, total: int, limit: float) -> int:
    """Return how often something of so many characters may stand in a text of `total` ones."""
    most = int(limit * total / characters)
    return most if characters * most / total <= limit else most - 1


def most_frequent(hashes: Hashes, most: int) -> list[NDArray[np.int64]]:
    """Return where the most frequent hashes stand, if that is more often than `most` times.

    `most` is 1 or more. All hashes that are equally frequent, the earliest first.
    """
    ranked = np.sort(hashes)
    if most >= len(ranked) or not (is_more := ranked[most:] == ranked[:-most]).any():
        return []
    values, counts = np.unique(ranked[most:][is_more], return_counts=True)
    places = [np.flatnonzero(hashes == value) for value in values[counts == counts.max()]]
    return sorted(places, key=lambda one: int(one[0]))


def count_repeats(hashes: Hashes) -> int:
    """Return how many hashes equal an earlier one."""
    ranked = np.sort(hashes)
    return int(np.count_nonzero(ranked[1:] == ranked[:-1]))


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
    is_likely = np.zeros(1 << 13, dtype=bool)
    is_likely[values & _LOW_BITS] = True
    places = np.flatnonzero(is_likely[hashes & _LOW_BITS])
    slots = np.searchsorted(values, hashes[places])
    slots[slots == len(values)] = 0
    is_found = values[slots] == hashes[places]
    return places[is_found], slots[is_found]


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
