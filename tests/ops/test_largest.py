"""Ranking by groups finds the values of a full sort, and names places that hold them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.ops import select_topk
from fivefold.ops.select_topk import largest


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 300),
    n=st.integers(1, 40),
    values=st.sampled_from([1, 2, 5, 1000]),
    hidden=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_values_are_those_of_a_sort_and_places_hold_them(
    size: int, n: int, values: int, hidden: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (5, size), generator=generator).float()
    scores[torch.rand(5, size, generator=generator) < hidden] = -torch.inf
    n = min(n, size)
    with pytest.MonkeyPatch.context() as patch:
        # Group even these short rows, as often as their length allows.
        patch.setattr(select_topk, "_FEW", 0)
        found, places = largest(scores, n)
    assert torch.equal(
        found.sort(-1, descending=True).values, scores.sort(-1).values.flip(-1)[:, :n]
    )
    assert torch.equal(scores.gather(1, places), found)
    assert all(len(set(row)) == n for row in places.tolist())
