"""Labels of every depth against a loop over places."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.loader import Rows
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.train.batch import label_counts, make_batch, microbatches


def make_rows(lengths_of_rows: list[list[int]], row_tokens: int, seed: int = 0) -> Rows:
    """Lay documents of the given lengths into rows; the rest is padding."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths_of_rows), row_tokens)
    ids = rng.integers(3, 99, shape).astype(np.int32)
    document = np.full(shape, -1, dtype=np.int32)
    positions = np.zeros(shape, dtype=np.int32)
    for row, lengths in enumerate(lengths_of_rows):
        begin = 0
        for number, length in enumerate(lengths):
            document[row, begin : begin + length] = number
            positions[row, begin : begin + length] = np.arange(length)
            begin += length
    return Rows(ids, document, positions, np.zeros(len(ids), dtype=np.int16))


@given(st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=4))
def test_labels_are_the_tokens_ahead_within_the_document(lengths: list[list[int]]) -> None:
    tokens = 24
    rows = make_rows(lengths, tokens + 1)
    batch = make_batch(rows, 3, "cpu")
    counts = label_counts(rows, 3)
    for depth in range(4):
        expected = np.full((len(lengths), tokens), IGNORED)
        for row in range(len(lengths)):
            for i in range(tokens):
                target = i + 1 + depth
                same = target <= tokens and rows.document[row, i] == rows.document[row, target]
                if same and rows.document[row, i] >= 0:
                    expected[row, i] = rows.ids[row, target]
        assert np.array_equal(batch.labels_BT[depth].numpy(), expected)
        assert counts[depth] == (expected != IGNORED).sum()
        if depth:
            inside = torch.from_numpy(expected != IGNORED)
            ahead = torch.from_numpy(rows.ids.astype(np.int64))
            wanted = torch.stack([ahead[:, min(i + depth, tokens)] for i in range(tokens)], 1)
            assert torch.equal(batch.ahead_BT[depth - 1][inside], wanted[inside])


def test_rows_of_one_document_need_no_mask() -> None:
    assert make_batch(make_rows([[9], [5], []], 9), 0, "cpu").documents_BT is None
    assert make_batch(make_rows([[4, 5], [9]], 9), 0, "cpu").documents_BT is not None


def test_microbatches_cover_the_rows_in_order() -> None:
    rows = make_rows([[3]] * 7, 5)
    parts = list(microbatches(rows, 3))
    assert [len(part.ids) for part in parts] == [3, 3, 1]
    assert np.array_equal(np.concatenate([part.ids for part in parts]), rows.ids)
