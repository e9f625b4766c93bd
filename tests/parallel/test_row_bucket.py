"""Pieces of parts and rows against a count over elements; sums of buckets against plain sums."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fivefold.parallel.ledger import Ledger
from fivefold.parallel.mesh import Group
from fivefold.parallel.part import Box
from fivefold.parallel.row_bucket import RowBucket, common
from fivefold.parallel.row_shard import RowShard

SIZES = st.integers(1, 9)


@st.composite
def boxes(draw: st.DrawFn, rows: int, columns: int) -> Box:
    first = sorted(draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    second = sorted(draw(st.tuples(st.integers(0, columns), st.integers(0, columns))))
    cut = draw(st.sampled_from([None, slice(*second)]))
    return Box(slice(*first), cut)


@given(st.data(), SIZES, SIZES, st.integers(1, 5))
def test_pieces_are_the_elements_that_both_have(
    data: st.DataObject, rows: int, columns: int, ranks: int
) -> None:
    box = data.draw(boxes(rows, columns))
    whole = torch.arange(rows * columns * 2).view(rows, columns, 2)
    held = box.of(whole)
    found: list[int] = []
    for rank in range(ranks):
        shard = RowShard((rows, columns, 2), ranks, rank)
        piece = common(box, shard, rank)
        sent, taken = held[piece.in_part], whole[shard.rows][piece.in_rows]
        assert torch.equal(sent, taken)
        assert tuple(sent.shape) == piece.shape
        found += sent.flatten().tolist()
    # Every element has one rank that updates it.
    assert sorted(found) == sorted(held.flatten().tolist())


def deliver(buckets: list[RowBucket], whole: list[Tensor]) -> list[Tensor]:
    """Stand for the all-to-all: give each rank the others' runs, in the order of ranks."""
    sent = [tensor.split(bucket.sent_counts) for bucket, tensor in zip(buckets, whole, strict=True)]
    return [torch.cat([runs[rank] for runs in sent]) for rank in range(len(buckets))]


@given(st.data(), SIZES, SIZES, st.integers(2, 4))
def test_a_bucket_sums_what_ranks_hold_of_each_row(
    data: st.DataObject, rows: int, columns: int, ranks: int
) -> None:
    shapes = {"a": (rows, columns), "b": (columns, rows), "c": (rows,)}
    held = [
        {
            name: data.draw(boxes(*shape)) if len(shape) == 2 else Box(slice(0, rows), None)
            for name, shape in shapes.items()
        }
        for _ in range(ranks)
    ]
    buckets = []
    for rank in range(ranks):
        shards = {name: RowShard(shape, ranks, rank) for name, shape in shapes.items()}
        group = Group("dp", tuple(range(ranks)), rank, None, Ledger())
        buckets.append(RowBucket(shards, held, group, torch.empty(0, dtype=torch.float64)))
    generator = torch.Generator().manual_seed(rows + 10 * columns)
    wanted = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    totals: list[Tensor | None] = [None] * ranks
    for _ in range(2):
        filled = []
        for rank, bucket in enumerate(buckets):
            whole = bucket.empty_whole()
            assert whole.nbytes == bucket.whole_bytes
            for name, shape in shapes.items():
                box = held[rank][name]
                # The last rank has no gradient of the last parameter.
                gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
                is_missing = name == "c" and rank == ranks - 1
                bucket.pack(whole, name, None if is_missing else box.of(gradient))
                if not is_missing:
                    box.of(wanted[name]).add_(box.of(gradient))
            filled.append(whole)
        arrived = deliver(buckets, filled)
        totals = [
            bucket.add(total, came)
            for bucket, total, came in zip(buckets, totals, arrived, strict=True)
        ]
    for rank, (bucket, total) in enumerate(zip(buckets, totals, strict=True)):
        assert total is not None
        for name, found in bucket.rows(total).items():
            own = wanted[name][RowShard(shapes[name], ranks, rank).rows]
            torch.testing.assert_close(found, own, rtol=1e-12, atol=1e-12)
