"""The order of rows: a seeded permutation that needs no memory.

Row j of epoch e is `permuted_index(j, n, seed, e)`: a Feistel network of four rounds on the
smallest even number of bits that holds n, walked until the result is below n (Luby and Rackoff
1988; Black and Rogaway 2002, cycle walking). Any place of the order is computed alone, so that
resuming is one integer and the order does not depend on how many processes read it.
"""

import numpy as np
import xxhash

_ROUNDS = 4


def permuted_index(index: np.ndarray | int, n: int, seed: int, epoch: int) -> np.ndarray:
    """Map places 0..n-1 onto 0..n-1, one to one; int64 of the shape of `index`."""
    places = np.atleast_1d(np.asarray(index, dtype=np.int64))
    assert n > 0, "an empty order has no places"
    assert places.size == 0 or (places.min() >= 0 and places.max() < n), "place outside the order"
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [xxhash.xxh3_64_intdigest(f"{seed} {epoch} {k}".encode()) for k in range(_ROUNDS)]
    result = _feistel(places.astype(np.uint64), half_bits, keys)
    # A permutation of the larger domain returns to [0, n) from any start inside it.
    while (outside := result >= n).any():
        result[outside] = _feistel(result[outside], half_bits, keys)
    return result.astype(np.int64).reshape(np.shape(index))


def _feistel(value: np.ndarray, half_bits: int, keys: list[int]) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << shift) | right


def _mix(value: np.ndarray, key: int) -> np.ndarray:
    """Scramble 64-bit words: the finalizer of splitmix64 after adding the round's key."""
    value = value + np.uint64(key)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
