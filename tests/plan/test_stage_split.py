import itertools

from hypothesis import given
from hypothesis import strategies as st

from fivefold.plan.stage_split import split_evenly


@given(
    work=st.lists(st.floats(0, 10), min_size=1, max_size=9).filter(lambda work: sum(work) > 0),
    data=st.data(),
)
def test_split_has_the_least_possible_largest_stage(work: list[float], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(work)))
    runs = split_evenly(work, stages)

    assert [index for run in runs for index in run] == list(range(len(work)))
    assert len(runs) == stages
    assert all(len(run) > 0 for run in runs)
    least = min(
        max(sum(work[a:b]) for a, b in itertools.pairwise((0, *cuts, len(work))))
        for cuts in itertools.combinations(range(1, len(work)), stages - 1)
    )
    assert max(sum(work[index] for index in run) for run in runs) <= least * (1 + 1e-9) + 1e-9


def test_split_of_equal_pieces_is_even() -> None:
    assert [len(run) for run in split_evenly([1.0] * 12, 4)] == [3, 3, 3, 3]
