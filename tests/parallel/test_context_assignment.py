"""Who takes which tokens: every token once, even work, by the model's own counts."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.packing import pack_documents
from fivefold.errors import ConfigError
from fivefold.models.preset import preset
from fivefold.parallel.context.assignment import Order, assign, imbalance, rank_work
from fivefold.parallel.context.work import TokenWork, token_work, visible_keys
from fivefold.plan.config import TrainingStage
from fivefold.plan.flops import training_flops

BYTES_A_TOKEN = 4
QUADRATIC = TokenWork(10.0, 1.0, 0.0, 0)


def packed(lengths_of_rows: list[list[int]]) -> np.ndarray:
    """Number the documents of rows that they fill."""
    return np.stack([np.repeat(np.arange(len(row)), row) for row in lengths_of_rows])


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 8),
    st.sampled_from(["contiguous", "zigzag", "balanced"]),
    st.integers(1, 3),
)
def test_every_token_has_one_rank(
    lengths: list[list[int]], ranks: int, order: Order, unit: int
) -> None:
    most = max(*(sum(row) for row in lengths), 2 * ranks * unit)
    most = -(-most // unit) * unit
    documents = packed([[*row, most - sum(row)] if sum(row) < most else row for row in lengths])
    assignment = assign(order, documents, ranks, QUADRATIC, unit)
    taken = np.zeros(documents.shape, dtype=int)
    for runs in assignment:
        assert runs == sorted(runs)
        for run in runs:
            taken[run.row, run.begin : run.end] += 1
            assert run.begin % unit == run.end % unit == 0
    assert (taken == 1).all()
    work = QUADRATIC.of_documents(documents)
    assert rank_work(assignment, work).sum() == pytest.approx(work.sum())
    held = [sum(run.end - run.begin for run in runs) for runs in assignment]
    # Whole chunks: a rank holds at most one more than another, and they differ by a unit.
    longest = max(run.end - run.begin for runs in assignment for run in runs)
    assert max(held) - min(held) <= longest + len(documents) * 2 * ranks * unit


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_visible_keys_count_from_the_documents_begin(lengths: list[int]) -> None:
    wanted = [place + 1 for length in lengths for place in range(length)]
    assert visible_keys(packed([lengths]))[0].tolist() == wanted


@pytest.mark.parametrize("stage", ["dense", "warmup", "sparse"])
@pytest.mark.parametrize("name", ["nano", "glm5"])
def test_work_of_a_row_is_the_plans_flops(name: str, stage: TrainingStage) -> None:
    config = preset(name)
    work = token_work(config, stage)
    for context in (64, 4096, 65536):
        if context <= config.index_topk and stage == "sparse":
            # The plan counts short rows in the expanded form; a microbatch has one form.
            continue
        of_row = work.of_documents(np.zeros((1, context), dtype=int)).sum()
        planned = training_flops(config, context, stage=stage).total * context
        assert of_row == pytest.approx(planned, rel=1e-9)


def test_zigzag_evens_one_causal_document() -> None:
    documents = packed([[4096]])
    work = TokenWork(0.0, 1.0, 0.0, 0)
    tokens = work.of_documents(documents)
    uneven = imbalance(assign("contiguous", documents, 4, work), tokens)
    # The last of 4 ranks sees 7/16 of all pairs.
    assert uneven == pytest.approx(4 * 7 / 16 - 1, rel=1e-3)
    assert imbalance(assign("zigzag", documents, 4, work), tokens) < 1e-3


def test_fewer_tokens_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="tokens for each of 4 ranks along `cp`"):
        assign("contiguous", packed([[3]]), 4, QUADRATIC)


def packed_sources(row_tokens: int, pieces: int = 400) -> np.ndarray:
    """Pack the files of the standard library, by length: code has many short and few long files."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:pieces]
    lengths = np.array([file.stat().st_size // BYTES_A_TOKEN for file in files])
    pack = pack_documents(lengths, row_tokens - 1, "best_fit")
    counts = zip(pack.pointer[:-1], pack.pointer[1:], strict=True)
    rows = [pack.length[begin:end].tolist() for begin, end in counts]
    return packed([[*row, row_tokens - sum(row)] if sum(row) < row_tokens else row for row in rows])


@pytest.mark.parametrize("stage", ["dense", "warmup", "sparse"])
def test_balanced_is_most_even_on_lengths_of_code(stage: TrainingStage) -> None:
    documents = packed_sources(32768)
    work = token_work(preset("glm5"), stage)
    tokens = work.of_documents(documents)
    mean: dict[Order, float] = {}
    for order in ("contiguous", "zigzag", "balanced"):
        waits = [
            imbalance(assign(order, documents[[row]], 8, work), tokens[[row]])
            for row in range(len(documents))
        ]
        mean[order] = float(np.mean(waits))
    print(f"{stage}: " + ", ".join(f"{order} {value:.4f}" for order, value in mean.items()))
    assert mean["balanced"] < 0.01
    assert mean["balanced"] < 0.5 * mean["zigzag"] < mean["contiguous"]
