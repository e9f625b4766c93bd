"""A Bloom filter over 64-bit hashes, in one numpy array of bits.

Sizes by Bloom (1970): m = -n ln p / (ln 2)^2 bits and k = m/n ln 2 places for each of n items give
false positives with probability p once all n are in. Places are h1 + i * h2 (Kirsch and
Mitzenmacher 2006), from two stirred copies of one hash. There are no false negatives.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fivefold.data.curate.lexicon import Hashes


class BloomFilter:
    """A set that forgets its members but knows, nearly always, what was never in it."""

    def __init__(self, expected: int, false_positives: float) -> None:
        """Size the filter for `expected` members and a probability once they are in."""
        bits = max(64, math.ceil(-expected * math.log(false_positives) / math.log(2) ** 2))
        self.bit_count = bits
        self.place_count = max(1, round(bits / expected * math.log(2)))
        self._bytes = np.zeros((bits + 7) // 8, dtype=np.uint8)
        self._steps = np.arange(self.place_count, dtype=np.uint64)[:, None]

    def contains(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return for each hash whether it was added, or looks like it."""
        return self.are_set(self.places(hashes))

    def add(self, hashes: Hashes) -> None:
        """Add every hash."""
        self.set_all(self.places(hashes))

    def places(self, hashes: Hashes) -> NDArray[np.uint64]:
        """Return the numbers of the bits [place_count, hashes] that stand for each hash."""
        first = _stir(hashes, 0xBF58476D1CE4E5B9)
        second = _stir(hashes, 0x94D049BB133111EB) | np.uint64(1)
        return (first + self._steps * second) % np.uint64(self.bit_count)

    def are_set(self, places: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each column of `places` whether all its bits are set."""
        bits = self._bytes[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8)
        return np.bitwise_and.reduce(bits, axis=0) & np.uint8(1) != 0

    def set_all(self, places: NDArray[np.uint64]) -> None:
        """Set all bits of `places`."""
        places = places.ravel()
        masks = np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
        np.bitwise_or.at(self._bytes, places >> np.uint64(3), masks)

    def fill_share(self) -> float:
        """Return the share of bits that are set; about one half when the filter is full."""
        return int(np.bitwise_count(self._bytes).sum()) / self.bit_count


def _stir(hashes: Hashes, factor: int) -> Hashes:
    stirred = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(factor)
    return stirred ^ (stirred >> np.uint64(27))
