import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.order import permuted_index


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 4096, 65_537, 100_003])
def test_order_is_a_permutation(n: int):
    order = permuted_index(np.arange(n), n, seed=3, epoch=1)
    assert np.array_equal(np.sort(order), np.arange(n))


@given(
    n=st.integers(1, 2**40),
    seed=st.integers(-(2**63), 2**63),
    epoch=st.integers(0, 1000),
    data=st.data(),
)
def test_places_computed_alone_agree_and_stay_apart(n, seed, epoch, data):
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    together = permuted_index(np.array(places), n, seed, epoch)
    assert [int(permuted_index(place, n, seed, epoch)) for place in places] == together.tolist()
    assert len(set(together.tolist())) == len(places)
    assert together.min() >= 0
    assert together.max() < n


def test_epochs_and_seeds_give_other_orders():
    orders = [permuted_index(np.arange(1000), 1000, s, e) for s in range(3) for e in range(3)]
    for first in range(len(orders)):
        for second in range(first):
            assert (orders[first] == orders[second]).mean() < 0.02


def test_first_place_is_uniform_over_seeds():
    n, draws = 50, 5000
    counts = np.bincount([int(permuted_index(0, n, seed, 0)) for seed in range(draws)], minlength=n)
    chi_square = ((counts - draws / n) ** 2 / (draws / n)).sum()
    # 49 degrees of freedom: mean 49, deviation 9.9; the seeds are fixed, so this never flickers.
    assert chi_square < 49 + 4 * 9.9


def test_neighbours_do_not_stay_neighbours():
    order = permuted_index(np.arange(10_000), 10_000, seed=0, epoch=0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
