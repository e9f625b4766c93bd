import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.packing import (
    Pack,
    best_fit_rows,
    cut_documents,
    load_pack,
    pack_documents,
    pack_long_pieces,
    save_pack,
)
from fivefold.errors import CorruptFileError, MismatchError, MissingFileError

LENGTHS = st.lists(st.integers(0, 60), max_size=40)
METHODS = ("best_fit", "concat")


def predictions(pack: Pack, documents: int) -> list[list[int]]:
    """Return, for each document, the tokens that some row predicts, with repetitions."""
    predicted: list[list[int]] = [[] for _ in range(documents)]
    for document, start, length in zip(pack.document, pack.start, pack.length, strict=True):
        predicted[document] += range(start + 1, start + length)
    return [sorted(tokens) for tokens in predicted]


@pytest.mark.parametrize("method", METHODS)
@given(lengths=LENGTHS, context=st.integers(2, 20))
def test_every_token_but_the_first_is_predicted_once(method, lengths, context):
    pack = pack_documents(np.array(lengths, dtype=np.int64), context, method)
    assert predictions(pack, len(lengths)) == [list(range(1, length)) for length in lengths]


@pytest.mark.parametrize("method", METHODS)
@given(lengths=LENGTHS, context=st.integers(2, 20))
def test_no_row_holds_more_than_its_places(method, lengths, context):
    pack = pack_documents(np.array(lengths, dtype=np.int64), context, method)
    used = [pack.length[a:b].sum() for a, b in itertools.pairwise(pack.pointer)]
    assert all(0 < tokens <= context + 1 for tokens in used)
    assert pack.pointer[0] == 0
    assert pack.pointer[-1] == len(pack.length)


@given(lengths=LENGTHS, context=st.integers(2, 20))
def test_best_fit_splits_only_what_does_not_fit(lengths, context):
    pack = pack_documents(np.array(lengths, dtype=np.int64), context, "best_fit")
    pieces = np.bincount(pack.document, minlength=len(lengths))
    for length, count in zip(lengths, pieces, strict=True):
        if length <= context + 1:
            assert count == (length >= 2)


@given(lengths=st.lists(st.integers(1, 200), max_size=60), row=st.sampled_from([200, 257]))
def test_best_fit_takes_the_fullest_row_that_holds_the_piece(lengths, row):
    free: list[int] = []
    for length, chosen in zip(lengths, best_fit_rows(lengths, row), strict=True):
        candidates = [left for left in free if left >= length]
        if not candidates:
            assert chosen == len(free)
            free.append(row)
        assert free[chosen] == min(candidates, default=row)
        free[chosen] -= length


def fewest_rows(lengths: tuple[int, ...], row: int) -> int:
    """Return the optimum by trying every assignment."""
    best = len(lengths)

    def place(index: int, rows: list[int]) -> None:
        nonlocal best
        if len(rows) >= best:
            return
        if index == len(lengths):
            best = len(rows)
            return
        for number, used in enumerate(rows):
            if used + lengths[index] <= row:
                rows[number] += lengths[index]
                place(index + 1, rows)
                rows[number] -= lengths[index]
        rows.append(lengths[index])
        place(index + 1, rows)
        rows.pop()

    place(0, [])
    return best


@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=8))
def test_best_fit_decreasing_is_near_the_optimum(lengths):
    pack = pack_documents(np.array(lengths), 11, "best_fit")
    assert pack.rows <= 1.22 * fewest_rows(tuple(lengths), 12) + 1


@pytest.mark.parametrize("context", [256, 1024, 4096])
def test_rows_are_nearly_full_on_lengths_like_real_ones(context: int):
    lengths = 3 + np.random.default_rng(0).lognormal(6.8, 1.3, 11_000).astype(int)
    assert pack_documents(lengths, context, "best_fit").utilisation >= 0.995


def test_pieces_of_a_long_document_share_one_token():
    document, start, length = cut_documents(np.array([2, 10]), 4)
    assert list(zip(document, start, length, strict=True)) == [
        (0, 0, 2),
        (1, 0, 5),
        (1, 4, 5),
        (1, 8, 2),
    ]


def test_concat_fills_every_row_but_the_last():
    pack = pack_documents(np.array([7, 9, 30, 2]), 8, "concat")
    used = [int(pack.length[a:b].sum()) for a, b in itertools.pairwise(pack.pointer)]
    assert used[:-1] == [9] * (len(used) - 1)


def test_pack_reads_back_equal(tmp_path: Path):
    pack = pack_documents(np.array([3, 100, 20]), 16, "best_fit")
    save_pack(tmp_path / "p.npz", pack, "hash")
    read = load_pack(tmp_path / "p.npz", "hash")
    assert read.context_tokens == 16
    for name in ("pointer", "document", "start", "length"):
        np.testing.assert_array_equal(getattr(read, name), getattr(pack, name))


def test_pack_of_other_tokens_is_refused(tmp_path: Path):
    save_pack(tmp_path / "p.npz", pack_documents(np.array([3]), 16, "best_fit"), "hash")
    with pytest.raises(MismatchError):
        load_pack(tmp_path / "p.npz", "other")


def test_damaged_or_missing_pack_is_reported(tmp_path: Path):
    path = tmp_path / "p.npz"
    with pytest.raises(MissingFileError):
        load_pack(path, "hash")
    save_pack(path, pack_documents(np.array([3, 50]), 16, "best_fit"), "hash")
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorruptFileError):
            load_pack(path, "hash")


@given(lengths=LENGTHS, context=st.integers(2, 20), share=st.floats(0.1, 1))
def test_long_pack_holds_exactly_the_long_pieces(lengths, context, share):
    smallest = share * context
    pack = pack_long_pieces(np.array(lengths, dtype=np.int64), context, smallest)
    cut = zip(*cut_documents(np.array(lengths, dtype=np.int64), context), strict=True)
    packed = zip(pack.document, pack.start, pack.length, strict=True)
    assert sorted(packed) == sorted(piece for piece in cut if piece[2] >= smallest)
    used = [pack.length[a:b].sum() for a, b in itertools.pairwise(pack.pointer)]
    assert all(smallest <= tokens <= context + 1 for tokens in used)
