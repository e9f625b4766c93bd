"""Index scores in blocks against whole scores; the blocks against the rule of what is visible."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fivefold.ops import workspace
from fivefold.ops.index_scores import index_scores, query_blocks, reference

B, I, J = 2, 3, 4  # noqa: E741  # the shape legend of fivefold.models


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return index queries, keys and head weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, queries, I, J), (B, keys, J), (B, queries, I)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (9, 9), (5, 9), (300, 300)])
@pytest.mark.parametrize("numbers", [1, 50, 2**21])
def test_blocks_equal_whole_scores(
    queries: int, keys: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_CACHE_NUMBERS", numbers)
    tensors = inputs(queries, keys)
    scores = index_scores(*tensors)
    expected = reference(*tensors)
    assert torch.equal(scores == -torch.inf, expected == -torch.inf)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


def test_scores_are_the_formula_written_out() -> None:
    q, key, weight = inputs(4, 6)
    scores = index_scores(q, key, weight)
    for row in range(B):
        for query in range(4):
            for place in range(6):
                value = sum(
                    weight[row, query, head] * max((q[row, query, head] @ key[row, place]), 0)
                    for head in range(I)
                )
                expected = value if place <= query + 2 else -torch.inf
                assert scores[row, query, place].item() == pytest.approx(float(expected))


@settings(max_examples=60)
@given(
    documents=st.lists(st.integers(-1, 2), min_size=1, max_size=30),
    skipped=st.integers(0, 29),
    numbers=st.integers(1, 200),
)
def test_blocks_hold_each_visible_pair_once(
    documents: list[int], skipped: int, numbers: int
) -> None:
    keys = len(documents)
    queries = keys - min(skipped, keys - 1)
    seen = torch.zeros(2, queries, keys)
    documents_BS = torch.tensor([documents, documents[::-1]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "_CACHE_NUMBERS", numbers)
        for block in query_blocks(queries, torch.empty(2, keys, 1), 3, documents_BS):
            shape = (2, block.end - block.begin, block.seen - block.first)
            assert 3 * math.prod(shape) <= numbers or shape[1] == 1
            seen[:, block.queries, block.keys] += block.hide_(torch.ones(shape), 0.0)
    own = documents_BS[:, keys - queries :, None]
    visible = ((own == documents_BS[:, None]) & (own >= 0)).tril(keys - queries)
    assert torch.equal(seen, visible.float())


def test_blocks_of_a_later_document_start_at_its_first_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workspace, "_CACHE_NUMBERS", 200)
    documents_BS = torch.tensor([[0] * 20 + [1] * 20])
    blocks = list(query_blocks(40, torch.empty(1, 40, 1), 1, documents_BS))
    assert {block.first for block in blocks if block.begin >= 20} == {20}


def test_scores_carry_no_gradient() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(9, 9)]
    assert not index_scores(*tensors).requires_grad
