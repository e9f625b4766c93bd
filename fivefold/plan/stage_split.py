"""Cutting a chain of pieces into pipeline stages of nearly equal work."""

from collections.abc import Sequence


def split_evenly(work: Sequence[float], stages: int) -> list[range]:
    """Cut the chain into `stages` non-empty runs whose largest sum is least.

    Bisects the largest sum: a bound is reachable if filling each run greedily up to it needs no
    more than `stages` runs. Runs that the greedy filling saves are cut from the longest ones.
    """
    assert 1 <= stages <= len(work), f"{len(work)} pieces for {stages} stages"
    low, high = max(work), sum(work)
    for _ in range(50):
        middle = (low + high) / 2
        if len(_fill(work, middle)) <= stages:
            high = middle
        else:
            low = middle
    runs = _fill(work, high)
    while len(runs) < stages:
        index = max(
            (i for i in range(len(runs)) if len(runs[i]) > 1),
            key=lambda i: sum(work[j] for j in runs[i]),
        )
        run = runs[index]
        cut = run.start + len(run) // 2
        runs[index : index + 1] = [range(run.start, cut), range(cut, run.stop)]
    return runs


def _fill(work: Sequence[float], bound: float) -> list[range]:
    runs: list[range] = []
    start, filled = 0, 0.0
    for index, piece in enumerate(work):
        if index > start and filled + piece > bound * (1 + 1e-12):
            runs.append(range(start, index))
            start, filled = index, 0.0
        filled += piece
    return [*runs, range(start, len(work))]
