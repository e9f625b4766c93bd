"""Selection in blocks against a stable sort of whole scores: ties, documents, borders, memory."""

import pytest
import torch
from allocation import LargestTensor
from torch import Tensor

from fivefold.ops import workspace
from fivefold.ops.sparse_index import reference, sparse_index

I, J = 3, 4  # noqa: E741  # the shape legend of fivefold.models

PACKED = torch.tensor([[0] * 12 + [1] * 20 + [2] * 3 + [-1] * 5, [4] * 1 + [-1] * 9 + [5] * 30])


def tied(rows: int, queries: int, keys: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return small whole numbers: exact scores, and many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    q, key, weight = (
        torch.randint(-1, 2, shape, generator=generator).float()
        for shape in ((rows, queries, I, J), (rows, keys, J), (rows, queries, I))
    )
    return q, key, weight


def untied(rows: int, queries: int, keys: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores of which no two are equal but the zeros of no matching head."""
    generator = torch.Generator().manual_seed(seed)
    q, key, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, queries, 16, J), (rows, keys, J), (rows, queries, 16))
    )
    return q, key, weight


@pytest.mark.parametrize("numbers", [1, 300, 2**21])
@pytest.mark.parametrize("documents", [None, PACKED])
@pytest.mark.parametrize("make", [tied, untied])
def test_blocks_select_as_a_stable_sort_of_whole_scores(
    make, documents: Tensor | None, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_CACHE_NUMBERS", numbers)
    q, key, weight = make(2, 40, 40)
    for k in (1, 7, 39, 40, 41):
        kept = sparse_index(q, key, weight, k, documents)
        assert kept.dtype == torch.int32
        assert torch.equal(kept, reference(q, key, weight, k, documents))


@pytest.mark.parametrize("make", [tied, untied])
def test_thousand_long_rows_equal_a_stable_sort(make) -> None:
    # Rows this long are ranked by groups; the last queries of a prefix.
    q, key, weight = make(1, 1000, 1200)
    for k in (3, 64):
        assert torch.equal(sparse_index(q, key, weight, k), reference(q, key, weight, k))


def test_all_equal_scores_keep_the_first_keys_of_the_document() -> None:
    q, key, weight = tied(2, 40, 40)
    kept = sparse_index(q, key, torch.zeros_like(weight), 5, PACKED)
    assert kept[0, 11].tolist() == [0, 1, 2, 3, 4]
    assert kept[0, 31].tolist() == [12, 13, 14, 15, 16]
    assert kept[0, 33].tolist() == [32, 33, -1, -1, -1]
    assert kept[1, 0].tolist() == [0, -1, -1, -1, -1]


def test_padding_chooses_nothing_and_is_not_chosen() -> None:
    kept = sparse_index(*tied(2, 40, 40), 6, PACKED)
    assert (kept[PACKED == -1] == -1).all()
    for row in range(2):
        places = kept[row][kept[row] >= 0].unique()
        assert (PACKED[row, places] >= 0).all()


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_every_visible_key_is_kept_up_to_k(extra: int) -> None:
    k = 12
    kept = sparse_index(*tied(1, k + extra, k + extra), k)[0]
    assert kept.shape == (k + extra, min(k, k + extra))
    for query, places in enumerate(kept.tolist()[:k]):
        assert places == list(range(query + 1)) + [-1] * (len(places) - query - 1)


@pytest.mark.parametrize("make", [tied, untied])
def test_packed_documents_select_as_they_do_alone(make) -> None:
    q, key, weight = make(1, 40, 40)
    kept = sparse_index(q, key, weight, 6, PACKED[:1])
    for begin, end in ((0, 12), (12, 32), (32, 35)):
        part = slice(begin, end)
        alone = sparse_index(q[:, part], key[:, part], weight[:, part], 6)
        width = alone.shape[-1]
        expected = torch.where(alone < 0, alone, alone + begin)
        assert torch.equal(kept[:, part, :width], expected)
        assert (kept[:, part, width:] == -1).all()


def test_last_query_alone_selects_as_in_the_row() -> None:
    q, key, weight = tied(2, 40, 40)
    whole = sparse_index(q, key, weight, 9)
    for query in (7, 8, 9, 39):
        one, seen = slice(query, query + 1), slice(0, query + 1)
        alone = sparse_index(q[:, one], key[:, seen], weight[:, one], 9)
        assert torch.equal(alone[:, 0], whole[:, query, : alone.shape[-1]])


def test_longest_context_makes_no_tensor_of_queries_times_keys() -> None:
    tokens, k = 16_384, 8
    generator = torch.Generator().manual_seed(0)
    q, key = (torch.randn(1, tokens, *rest, generator=generator) for rest in ((1, 2), (2,)))
    with LargestTensor() as largest:
        kept = sparse_index(q, key, torch.ones(1, tokens, 1), k)
    # A block's scores are the largest; one head's matches fit beside them.
    assert largest.numbers <= 2**21, largest.shape
    assert kept.shape == (1, tokens, k)
    assert (kept[0, -1] >= 0).all()
