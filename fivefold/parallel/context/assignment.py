"""Which rank takes which tokens of a microbatch: the orders, and how even their work is.

A rank's tokens are runs of its rows. `contiguous` gives each rank one run a row, the last rank the
dearest; `zigzag` cuts a row in twice as many parts as ranks and pairs the first with the last,
which evens a row that is one causal document; `balanced` cuts the rows in chunks and gives the
dearest chunk left to the rank with the least work that has room, longest processing time first
(Graham 1969). Every rank holds about as many tokens, as memory wants it. All ranks compute the same
table from the same rows; results do not depend on it beyond the order of sums. Where tensor ranks
cut a rank's tokens again, runs are whole units of as many tokens as there are tensor ranks.
"""

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from fivefold.errors import ConfigError
from fivefold.parallel.context.work import TokenWork

Order = Literal["contiguous", "zigzag", "balanced"]
"""How tokens are dealt to ranks."""

_CHUNKS_A_RANK = 16
"""Chunks that a rank takes of a microbatch: more are more even, and more runs of queries."""


class Run(NamedTuple):
    """Neighbouring tokens of one row."""

    row: int
    begin: int
    end: int


Assignment = list[list[Run]]
"""The runs of each rank, by row and place; every token in exactly one."""


def assign(
    order: Order, documents: np.ndarray, ranks: int, work: TokenWork, unit: int = 1
) -> Assignment:
    """Deal the tokens of `documents` [rows, tokens] to `ranks`, in runs of whole `unit` tokens.

    Raises:
        ConfigError: a rank would have no token.
    """
    assert documents.shape[1] % unit == 0, f"{documents.shape[1]} tokens in units of {unit}"
    deal: Callable[[np.ndarray, int, TokenWork, int], Assignment] = {
        "contiguous": _contiguous,
        "zigzag": _zigzag,
        "balanced": _balanced,
    }[order]
    assignment = [_joined(runs) for runs in deal(documents, ranks, work, unit)]
    if not all(assignment):
        raise ConfigError(
            expected=f"tokens for each of {ranks} ranks along `cp`",
            found=f"rows of {documents.shape[1]} tokens",
            fix="Lower `parallel.cp` or raise the context",
        )
    return assignment


def rank_work(assignment: Assignment, work_of_tokens: np.ndarray) -> np.ndarray:
    """Return the work of each rank: the sum over its tokens of [rows, tokens]."""
    before = _sums_before(work_of_tokens)
    return np.array([sum(_work(before, run) for run in runs) for runs in assignment])


def imbalance(assignment: Assignment, work_of_tokens: np.ndarray) -> float:
    """Return the busiest rank's work over the mean, minus one: the share of time that is waited."""
    work = rank_work(assignment, work_of_tokens)
    return float(work.max() / work.mean() - 1)


def _contiguous(documents: np.ndarray, ranks: int, work: TokenWork, unit: int) -> Assignment:
    del work
    parts = [_parts(row, documents.shape[1], ranks, unit) for row in range(len(documents))]
    return [[row[rank] for row in parts] for rank in range(ranks)]


def _zigzag(documents: np.ndarray, ranks: int, work: TokenWork, unit: int) -> Assignment:
    del work
    parts = [_parts(row, documents.shape[1], 2 * ranks, unit) for row in range(len(documents))]
    return [[row[p] for row in parts for p in (rank, -1 - rank)] for rank in range(ranks)]


def _balanced(documents: np.ndarray, ranks: int, work: TokenWork, unit: int) -> Assignment:
    rows, tokens = documents.shape
    parts_a_row = min(max(-(-ranks * _CHUNKS_A_RANK // rows), 1), tokens // unit)
    chunks = [run for row in range(rows) for run in _parts(row, tokens, parts_a_row, unit)]
    room = -(-len(chunks) // ranks)
    before = _sums_before(work.of_documents(documents))
    loads, dealt = [0.0] * ranks, [[] for _ in range(ranks)]
    # A stable order: equal chunks stay by place on every rank.
    for chunk in sorted(chunks, key=lambda run: -_work(before, run)):
        open_ranks = [rank for rank in range(ranks) if len(dealt[rank]) < room]
        least = min(open_ranks, key=lambda rank: loads[rank])
        loads[least] += _work(before, chunk)
        dealt[least].append(chunk)
    return dealt


def _parts(row: int, tokens: int, parts: int, unit: int) -> list[Run]:
    """Cut a row in parts as equal as whole units allow; with few of them some are empty."""
    ends = [tokens // unit * part // parts * unit for part in range(parts + 1)]
    return [Run(row, begin, end) for begin, end in itertools.pairwise(ends)]


def _joined(runs: list[Run]) -> list[Run]:
    """Sort by row and place, drop what is empty, join what touches."""
    joined: list[Run] = []
    for run in sorted(runs):
        if joined and joined[-1].row == run.row and joined[-1].end == run.begin:
            joined[-1] = joined[-1]._replace(end=run.end)
        elif run.begin < run.end:
            joined.append(run)
    return joined


def _sums_before(work_of_tokens: np.ndarray) -> np.ndarray:
    return np.pad(work_of_tokens.cumsum(1), ((0, 0), (1, 0)))


def _work(before: np.ndarray, run: Run) -> float:
    return float(before[run.row, run.end] - before[run.row, run.begin])
