"""From signatures to duplicates: bands, candidate pairs, connected components, one keeper for each.

Two documents are candidates when all `rows` values of one of `bands` bands agree, which happens
with probability 1 - (1 - s^rows)^bands for similarity s. Candidates are joined, and of each
component one document stays. Rows are documents in the order of their ids, and every decision is a
function of that order alone: not of shards, workers or the order of reading.

Surprise: joining is transitive, so that a chain of small changes ends in one component; the ends
may be less alike than any threshold.
"""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def collision_probability(similarity: float, bands: int, rows: int) -> float:
    """Return how probably two documents of this Jaccard similarity share a band."""
    return 1 - (1 - similarity**rows) ** bands


def band_keys(signatures: NDArray[np.uint32], bands: int) -> NDArray[np.uint64]:
    """Return a 64-bit key for each document and band of (N, bands * rows) signatures."""
    count, size = signatures.shape
    values = signatures.reshape(count, bands, size // bands)
    keys = np.zeros((count, bands), dtype=np.uint64)
    for row in range(values.shape[2]):
        keys = (keys ^ values[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def equal_neighbours(keys: NDArray) -> Indices:
    """Return (E, 2) pairs that connect equal keys: each place with the next such place."""
    order = np.argsort(keys, kind="stable")
    is_equal = keys[order[1:]] == keys[order[:-1]]
    return np.stack([order[:-1][is_equal], order[1:][is_equal]], axis=1)


def candidate_pairs(signatures: NDArray[np.uint32], bands: int) -> Indices:
    """Return (E, 2) pairs of documents that connect all those that share a band."""
    keys = band_keys(signatures, bands)
    pairs = [equal_neighbours(keys[:, band]) for band in range(bands)]
    return np.unique(np.concatenate(pairs), axis=0) if pairs else np.zeros((0, 2), dtype=np.int64)


def components(count: int, pairs: Indices) -> Indices:
    """Return for each of `count` documents the smallest one that pairs connect it with."""
    parents = list(range(count))

    def find(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for first, second in pairs.tolist():
        one, other = find(first), find(second)
        # The smaller root stays the root, so that a root is the smallest of its component.
        if one != other:
            parents[max(one, other)] = min(one, other)
    return np.fromiter((find(node) for node in range(count)), dtype=np.int64, count=count)


def choose_keepers(labels: Indices, sizes: Indices) -> Indices:
    """Return for each document the one of its component that stays: the longest, then the first."""
    order = np.lexsort((np.arange(len(labels)), -sizes, labels))
    is_first = np.append(True, labels[order[1:]] != labels[order[:-1]])[: len(labels)]
    keepers = np.empty(len(labels), dtype=np.int64)
    keepers[labels[order[is_first]]] = order[is_first]
    return keepers[labels]
