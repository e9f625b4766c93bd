import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.errors import ConfigError
from fivefold.plan.automatic import POLICIES, automatic, search_policies
from fivefold.plan.make_schedule import make_schedule
from fivefold.plan.schedule import find_faults, loop_placement, v_placement
from fivefold.plan.simulate import StageCosts, even_costs, simulate


@st.composite
def _problems(draw: st.DrawFn) -> tuple[tuple[int, ...], int, StageCosts, tuple[float, ...]]:
    """Draw a placement, microbatches, uneven costs and caps that hold a microbatch or more."""
    ranks = draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["one", "loop", "v"]))
    placement = v_placement(ranks) if kind == "v" else loop_placement(ranks, 1 + (kind == "loop"))
    stages = len(placement)

    def values(count: int, low: float, high: float) -> tuple[float, ...]:
        return tuple(draw(st.lists(st.floats(low, high), min_size=count, max_size=count)))

    memory = values(stages, 0.1, 5)
    costs = StageCosts(
        forward=values(stages, 0.01, 4),
        input_gradient=values(stages, 0.01, 4),
        weight_gradient=values(stages, 0.0, 4),
        edge=values(stages - 1, 0.0, 2),
        memory=memory,
        weight_memory=tuple(draw(st.floats(0, 1)) * value for value in memory),
    )
    least = [
        sum(m for m, r in zip(memory, placement, strict=True) if r == rank) for rank in range(ranks)
    ]
    room = values(ranks, 1.0, 4.0)
    caps = tuple(factor * value for factor, value in zip(room, least, strict=True))
    return placement, draw(st.integers(1, 12)), costs, caps


@settings(max_examples=120)
@given(problem=_problems(), policy=st.sampled_from(POLICIES))
def test_search_random_costs_and_caps_give_valid_tables_within_memory(problem, policy) -> None:
    placement, microbatches, costs, caps = problem
    schedule = search_policies(placement, microbatches, costs, caps, [policy])

    assert find_faults(schedule) == []
    peaks = simulate(schedule, costs).peak_memory
    assert all(peak <= cap * (1 + 1e-6) for peak, cap in zip(peaks, caps, strict=True))


def test_automatic_with_one_microbatch_of_room_runs_them_one_by_one() -> None:
    costs = even_costs(4)
    timeline = simulate(automatic(loop_placement(4), 5, costs, (1.0,) * 4), costs)

    assert timeline.peak_memory == (1.0,) * 4
    assert timeline.makespan >= 5 * 8


def test_automatic_more_memory_never_costs_time() -> None:
    costs = even_costs(4, 1.0, 1.1, 0.6, 0.05, weight_memory=0.4)
    spans = [
        simulate(automatic(loop_placement(4), 16, costs, (cap,) * 4), costs).longest_span
        for cap in (2.0, 4.0, 8.0)
    ]

    assert spans[0] > spans[1] > spans[2]


@pytest.mark.parametrize("name", ["zb_h1", "zb_h2"])
@pytest.mark.parametrize("slow", [1.0, 1.6], ids=["even", "uneven"])
def test_automatic_is_never_slower_than_handmade_tables_of_its_memory(
    name: str, slow: float
) -> None:
    times, even = (1.0, 1.0, 1.0, slow), even_costs(4)
    costs = StageCosts(times, times, (1.0,) * 4, even.edge, even.memory, even.weight_memory)
    handmade = simulate(make_schedule(name, 4, 16), costs)
    ours = simulate(automatic(loop_placement(4), 16, costs, handmade.peak_memory), costs)

    assert ours.longest_span <= handmade.longest_span
    assert all(a <= b for a, b in zip(ours.peak_memory, handmade.peak_memory, strict=True))


def test_search_beats_handmade_tables_where_weight_gradients_are_short() -> None:
    costs = even_costs(8, 1.0, 0.98, 0.5, 0.03, weight_memory=0.4)
    handmade = simulate(make_schedule("zb_h2", 8, 32), costs)
    found = simulate(search_policies(loop_placement(8), 32, costs, (16.0,) * 8), costs)

    assert found.longest_span < 0.95 * handmade.longest_span


def test_automatic_refuses_a_cap_below_one_microbatch() -> None:
    with pytest.raises(ConfigError, match="rank 2"):
        automatic(loop_placement(3), 4, even_costs(3), (1.0, 1.0, 0.5))
