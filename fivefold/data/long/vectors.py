"""Light vectors of texts: TF-IDF over words, hashed into a fixed width.

Each word has a place and a sign by its hash (feature hashing, Weinberger et al., ICML 2009), so
that inner products are those of the full TF-IDF vectors, unbiased, with an error of about
1/sqrt(dimensions). Weights are (1 + log tf) * idf, vectors have length 1. Nothing is downloaded
and nothing is trained but document frequencies. A sentence-embedding model fits the same protocol.

Similar vectors are found by one matrix product a block: exact, and fast up to a million chunks.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from fivefold.data.curate.words import unicode_words

_MIN_LETTERS = 2


class HashedTfidf:
    """An `Embedder` over the words of a collection."""

    def __init__(self, frequencies: dict[str, int], count: int, dimensions: int) -> None:
        """Take in how many of `count` texts each word stands."""
        self._dimensions = dimensions
        self._count = count
        self._weights: dict[str, tuple[int, float]] = {}
        for word, frequency in frequencies.items():
            value = xxhash.xxh3_64_intdigest(word.encode())
            idf = float(np.log((1 + count) / (1 + frequency)))
            self._weights[word] = (value % dimensions, idf if value >> 63 else -idf)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder`; words that the collection does not have are not known."""
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            for word, times in Counter(content_words(text)).items():
                if word in self._weights:
                    place, weight = self._weights[word]
                    vectors[row, place] += (1 + np.log(times)) * weight
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1).astype(np.float32)


def content_words(text: str) -> list[str]:
    """Return the words of a text in lower case, single letters and numbers left out."""
    return [
        word
        for word in unicode_words(text.lower())
        if len(word) >= _MIN_LETTERS and not word[0].isdigit()
    ]


def nearest(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each query the `count` most similar vectors, best first, and their cosines.

    Cosines count to five decimals, and among equals the first vector is nearer: sums of another
    matrix library may differ in the last bits.
    """
    count = min(count, len(vectors))
    cosines = np.round(queries @ vectors.T, 5)
    order = np.empty((len(queries), count), dtype=np.int64)
    if not count:
        return order, np.take_along_axis(cosines, order, axis=1)
    least = np.partition(cosines, len(vectors) - count, axis=1)[:, len(vectors) - count]
    for row, values in enumerate(cosines):
        places = np.flatnonzero(values >= least[row])
        order[row] = places[np.argsort(-values[places], kind="stable")][:count]
    return order, np.take_along_axis(cosines, order, axis=1)
