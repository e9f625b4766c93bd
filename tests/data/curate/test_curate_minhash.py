import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fivefold.data.curate.config import MinHashConfig
from fivefold.data.curate.minhash import shingle_hashes, signature, text_signature
from fivefold.data.curate.near_duplicate import (
    band_keys,
    candidate_pairs,
    choose_keepers,
    collision_probability,
    components,
    equal_neighbours,
)

CONFIG = MinHashConfig()
MIX = np.uint64(0xD6E8FEB86659FD93)


def sets_of_similarity(similarity: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of 300 hashes together, whose Jaccard similarity is the share of common ones."""
    union = 300
    common = round(similarity * union)
    items = np.arange(union, dtype=np.uint64) + np.uint64(number * union)
    hashes = (items + np.uint64(1)) * MIX
    hashes ^= hashes >> np.uint64(32)
    hashes *= MIX
    half = common + (union - common) // 2
    return hashes[:half], np.concatenate([hashes[:common], hashes[half:]])


@pytest.mark.parametrize("similarity", [0.5, 0.65, 0.72, 0.8, 0.9])
def test_pairs_are_found_as_often_as_the_curve_says(similarity: float):
    trials, found, agreeing = 300, 0, 0.0
    for number in range(trials):
        first, second = (signature(s, CONFIG) for s in sets_of_similarity(similarity, number))
        keys = band_keys(np.stack([first, second]), CONFIG.bands)
        found += bool((keys[0] == keys[1]).any())
        agreeing += (first == second).mean() / trials
    common = round(similarity * 300)
    exact = common / 300
    expected = collision_probability(exact, CONFIG.bands, CONFIG.rows)
    assert abs(found - trials * expected) <= 3 * np.sqrt(trials * expected * (1 - expected)) + 1
    values = CONFIG.bands * CONFIG.rows
    assert abs(agreeing - exact) <= 3 * np.sqrt(exact * (1 - exact) / (trials * values))


def test_threshold_of_the_published_setting():
    assert collision_probability((1 / 14) ** (1 / 8), 14, 8) == pytest.approx(0.646, abs=0.001)
    assert collision_probability(0.8, 14, 8) == pytest.approx(0.924, abs=0.001)


def test_signature_is_the_minimum_over_shingles():
    text = "The mill stood near the river and the ferry crossed it twice a day until autumn came"
    whole = shingle_hashes(text, 5)
    assert len(whole) == len(text.split()) - 4
    single = np.stack([signature(whole[i : i + 1], CONFIG) for i in range(len(whole))])
    assert (signature(whole, CONFIG) == single.min(axis=0)).all()
    assert (text_signature(text.upper() + "!", CONFIG) == signature(whole, CONFIG)).all()


def test_texts_shorter_than_a_shingle_have_one():
    assert len(shingle_hashes("two words", 5)) == 1
    assert len(shingle_hashes("...", 5)) == 0
    assert shingle_hashes("春眠不觉晓处处", 5).size == 3


PAIRS = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=30)


@given(PAIRS)
def test_components_are_scipys(pairs: list[tuple[int, int]]):
    count = 25
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    labels = components(count, edges)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, expected = connected_components(graph, directed=False)
    same = labels[:, None] == labels[None, :]
    assert (same == (expected[:, None] == expected[None, :])).all()
    assert all(labels[i] == np.flatnonzero(labels == labels[i])[0] for i in range(count))


@given(PAIRS, st.lists(st.integers(1, 3), min_size=25, max_size=25))
def test_longest_then_first_of_a_component_stays(pairs: list[tuple[int, int]], sizes: list[int]):
    labels = components(25, np.array(pairs, dtype=np.int64).reshape(-1, 2))
    keepers = choose_keepers(labels, np.array(sizes))
    for index in range(25):
        members = np.flatnonzero(labels == labels[index]).tolist()
        assert keepers[index] == max(members, key=lambda i: (sizes[i], -i))


@given(st.lists(st.integers(0, 5), max_size=20))
def test_equal_neighbours_connect_all_equal_keys(keys: list[int]):
    labels = components(len(keys), equal_neighbours(np.array(keys, dtype=np.int64)))
    assert all(
        (labels[i] == labels[j]) == (keys[i] == keys[j])
        for i in range(len(keys))
        for j in range(len(keys))
    )


def test_candidates_are_those_that_share_a_band():
    random = np.random.default_rng(0)
    signatures = random.integers(0, 2, size=(60, 12), dtype=np.uint32)
    labels = components(60, candidate_pairs(signatures, 3))
    bands = signatures.reshape(60, 3, 4)
    share = (bands[:, None] == bands[None]).all(axis=3).any(axis=2)
    brute = components(60, np.argwhere(share))
    assert (labels == brute).all()
    assert len(set(labels.tolist())) < 60
