"""The selection rule against a stable sort and against Python's own, ties included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fivefold.ops.select_topk import mask_to_indices, reference, select_topk, selection_mask

SEED = 20_260


def tied_scores(rows: int, size: int, *, values: int = 4, invisible: float = 0.2) -> Tensor:
    """Return scores of few distinct values, some of them -inf."""
    generator = torch.Generator().manual_seed(SEED)
    scores = torch.randint(0, values, (rows, size), generator=generator).float()
    hidden = torch.rand(rows, size, generator=generator) < invisible
    return scores.masked_fill(hidden, -torch.inf)


def by_python(row: list[float], k: int) -> list[int]:
    """Return the chosen indices of one row, ascending, by the rule as it is worded."""
    visible = [index for index, score in enumerate(row) if score > -float("inf")]
    return sorted(sorted(visible, key=lambda index: (-row[index], index))[:k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_thousand_rows_of_ties_equal_the_stable_sort(dtype: torch.dtype) -> None:
    scores = tied_scores(1000, 48).to(dtype)
    for k in (1, 7, 32, 47, 48, 49):
        assert torch.equal(selection_mask(scores, k), reference(scores, k))


def test_rows_without_ties_equal_the_stable_sort() -> None:
    # Without a tie the fast path leaves the counting of equals out.
    scores = torch.randn(1000, 48, generator=torch.Generator().manual_seed(SEED))
    for k in (1, 7, 47):
        chosen = reference(scores, k)
        assert torch.equal(selection_mask(scores, k), chosen)
        assert torch.equal(select_topk(scores, k), mask_to_indices(chosen, k))


def test_one_tied_row_among_untied_ones_is_broken_by_index() -> None:
    scores = torch.randn(50, 48, generator=torch.Generator().manual_seed(SEED))
    scores[17] = 1.0
    assert torch.equal(selection_mask(scores, 5), reference(scores, 5))
    assert torch.equal(select_topk(scores, 5), mask_to_indices(reference(scores, 5), 5))
    assert select_topk(scores, 5)[17].tolist() == [0, 1, 2, 3, 4]


@given(
    row=st.lists(st.sampled_from([-float("inf"), -1.0, -0.0, 0.0, 0.5, 2.0]), min_size=1),
    k=st.integers(1, 12),
)
def test_selection_is_the_rule_as_worded(row: list[float], k: int) -> None:
    expected = by_python(row, k)
    scores = torch.tensor([row])
    assert reference(scores, k)[0].nonzero().flatten().tolist() == expected
    assert select_topk(scores, k)[0].tolist() == expected + [-1] * (k - len(expected))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_all_equal_row_takes_the_first(value: float) -> None:
    assert select_topk(torch.full((2, 9), value), 4).tolist() == [[0, 1, 2, 3]] * 2


def test_signed_zeros_are_equal() -> None:
    assert select_topk(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), 2).tolist() == [[0, 1]]


def test_row_without_a_visible_score_chooses_nothing() -> None:
    scores = torch.full((1, 6), -torch.inf)
    for k in (3, 6, 7):
        assert not selection_mask(scores, k).any()
        assert select_topk(scores, k).tolist() == [[-1] * k]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_k_around_the_number_of_keys(extra: int) -> None:
    scores = tied_scores(64, 16, invisible=0)
    indices = select_topk(scores, 16 + extra)
    assert indices.shape == (64, 16 + extra)
    assert torch.equal(selection_mask(scores, 16 + extra), reference(scores, 16 + extra))
    if extra >= 0:
        assert torch.equal(indices[:, :16], torch.arange(16).expand(64, 16))
        assert (indices[:, 16:] == -1).all()


@pytest.mark.parametrize("context", [7, 8, 9])
def test_causal_rows_around_k_keep_every_visible_key_up_to_k(context: int) -> None:
    k = 8
    visible = torch.ones(context, context, dtype=torch.bool).tril()
    scores = tied_scores(context, context, invisible=0).masked_fill(~visible, -torch.inf)
    mask = selection_mask(scores, k)
    assert mask.sum(-1).tolist() == [min(row + 1, k) for row in range(context)]
    assert not (mask & ~visible).any()


def test_indices_ascend_and_are_padded_at_the_end() -> None:
    indices = select_topk(tied_scores(500, 24, invisible=0.7), 10)
    assert indices.dtype == torch.int64
    for row in indices.tolist():
        chosen = [index for index in row if index >= 0]
        assert chosen == sorted(set(chosen))
        assert row == chosen + [-1] * (10 - len(chosen))


@pytest.mark.parametrize("more", [1, 16, 1000])
def test_invisible_columns_do_not_change_a_row(more: int) -> None:
    scores = tied_scores(200, 40)
    padded = torch.cat([scores, torch.full((200, more), -torch.inf)], -1)
    for k in (3, 39, 40):
        assert torch.equal(select_topk(padded, k), select_topk(scores, k))


def test_row_does_not_depend_on_its_neighbours() -> None:
    scores = tied_scores(64, 40)
    together = select_topk(scores, 9)
    assert torch.equal(together, torch.cat([select_topk(row[None], 9) for row in scores]))
    assert torch.equal(select_topk(scores.view(4, 2, 8, 40), 9), together.view(4, 2, 8, 9))


def test_mask_and_indices_say_the_same() -> None:
    mask = selection_mask(tied_scores(200, 30), 12)
    indices = mask_to_indices(mask, 12)
    again = torch.zeros(200, 31, dtype=torch.bool).scatter_(-1, indices % 31, True)[:, :30]
    assert torch.equal(again, mask)


@pytest.mark.gpu
def test_selection_on_cuda_equals_the_cpu() -> None:
    scores = tied_scores(1000, 300)
    for k in (1, 32, 299, 300, 301):
        assert torch.equal(select_topk(scores.cuda(), k).cpu(), select_topk(scores, k))
