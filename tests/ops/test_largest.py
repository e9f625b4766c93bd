"""The largest values of a row are those of a full sort, the least of them first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.ops.select_topk import largest


@settings(max_examples=60)
@given(
    size=st.integers(1, 300),
    n=st.integers(1, 40),
    values=st.sampled_from([1, 2, 5, 1000]),
    hidden=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_those_of_a_sort_and_the_least_comes_first(
    dtype: torch.dtype, size: int, n: int, values: int, hidden: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (5, size), generator=generator).to(dtype)
    scores[torch.rand(5, size, generator=generator) < hidden] = -torch.inf
    n = min(n, size)
    found = largest(scores, n)
    assert found.dtype == dtype
    assert torch.equal(found.sort(-1).values, scores.sort(-1).values[:, -n:])
    assert torch.equal(found[:, 0], found.amin(-1))
