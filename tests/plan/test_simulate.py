import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.plan.make_schedule import NAMES, make_schedule, placement_of
from fivefold.plan.schedule import Action, Schedule, inputs_of
from fivefold.plan.simulate import StageCosts, even_costs, simulate

_TIME = st.floats(0.5, 3.0)


@given(
    ranks=st.integers(1, 8),
    microbatches=st.integers(1, 20),
    forward=_TIME,
    input_gradient=_TIME,
    weight_gradient=_TIME,
)
def test_one_f_one_b_makespan_equals_closed_form(
    ranks: int,
    microbatches: int,
    forward: float,
    input_gradient: float,
    weight_gradient: float,
) -> None:
    costs = even_costs(ranks, forward, input_gradient, weight_gradient)
    makespan = simulate(make_schedule("1f1b", ranks, microbatches), costs).makespan

    whole = forward + input_gradient + weight_gradient
    assert makespan == pytest.approx((microbatches + ranks - 1) * whole)


@pytest.mark.parametrize("weight_gradient", [0.5, 0.8, 1.0])
def test_zero_bubble_idle_time_equals_the_papers_formulas(weight_gradient: float) -> None:
    # arXiv 2401.10241, table 2, at F = I, with enough microbatches to reach the steady state.
    ranks, microbatches = 6, 40
    costs = even_costs(ranks, 1.0, 1.0, weight_gradient)
    formulas = {
        "1f1b": (ranks - 1) * (2 + weight_gradient),
        "zb_h1": (ranks - 1) * (2 - weight_gradient),
        "zb_h2": (ranks - 1) * (2 - 2 * weight_gradient),
    }
    for name, idle in formulas.items():
        timeline = simulate(make_schedule(name, ranks, microbatches), costs)

        assert timeline.longest_span - timeline.work[0] == pytest.approx(idle), name


def test_interleaving_divides_the_bubble() -> None:
    idle = []
    for chunks in (1, 2, 4):
        costs = even_costs(4 * chunks, 1 / chunks, 1 / chunks, 1 / chunks)
        timeline = simulate(make_schedule("interleaved", 4, 16, chunks=chunks), costs)
        idle.append(timeline.longest_span - timeline.work[0])

    assert idle == pytest.approx([9.0, 4.5, 2.25])


def test_zb_v_has_no_bubble_at_equal_costs() -> None:
    timeline = simulate(make_schedule("zb_v", 8, 24), even_costs(16))

    assert timeline.bubble_rate == pytest.approx(0)
    assert timeline.peak_memory == (16,) * 8


@st.composite
def _tables(draw: st.DrawFn) -> tuple[Schedule, StageCosts]:
    name = draw(st.sampled_from(NAMES))
    ranks, microbatches = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    stages = len(placement_of(name, ranks))

    def times(count: int, low: float = 0.1) -> tuple[float, ...]:
        return tuple(draw(st.lists(st.floats(low, 4), min_size=count, max_size=count)))

    memory = times(stages)
    costs = StageCosts(
        forward=times(stages),
        input_gradient=times(stages),
        weight_gradient=times(stages),
        edge=times(stages - 1, low=0.0),
        memory=memory,
        weight_memory=tuple(value * 0.5 for value in memory),
    )
    return make_schedule(name, ranks, microbatches), costs


@settings(max_examples=60)
@given(table=_tables())
def test_simulate_keeps_every_rule_and_wastes_no_time(table: tuple[Schedule, StageCosts]) -> None:
    schedule, costs = table
    timeline = simulate(schedule, costs)
    spans = {action: (start, end) for row in timeline.spans for action, start, end in row}

    for row in timeline.spans:
        free = 0.0
        for action, start, end in row:
            arrival = max(
                (
                    _arrival(option, action, spans, schedule, costs)
                    for option in _done(action, spans, schedule)
                ),
                default=0.0,
            )
            assert end == pytest.approx(start + costs.seconds(action))
            # At most later than both by queueing on a link, never earlier.
            assert start >= max(free, arrival) - 1e-9
            if sum(costs.edge) == 0:
                assert start == pytest.approx(max(free, arrival))
            free = end


def _done(action: Action, spans: dict, schedule: Schedule) -> list[Action]:
    return [
        option
        for options in inputs_of(action, schedule.stages)
        for option in options
        if option in spans
    ]


def _arrival(
    option: Action, action: Action, spans: dict, schedule: Schedule, costs: StageCosts
) -> float:
    homes = schedule.rank_of_stage
    travels = option.stage != action.stage and homes[option.stage] != homes[action.stage]
    edge = costs.edge[min(option.stage, action.stage)] if travels else 0.0
    return spans[option][1] + edge


@settings(max_examples=40)
@given(table=_tables(), slower=st.floats(0.0, 5.0))
def test_slower_links_never_shorten_a_fixed_table(
    table: tuple[Schedule, StageCosts], slower: float
) -> None:
    schedule, costs = table
    worse = dataclasses.replace(costs, edge=tuple(edge + slower for edge in costs.edge))

    assert simulate(schedule, worse).makespan >= simulate(schedule, costs).makespan - 1e-9


def test_link_carries_one_message_at_a_time() -> None:
    # Two forwards leave rank 0 at 1 and 2; the link needs 10 for each.
    schedule = make_schedule("1f1b", 2, 2)
    timeline = simulate(schedule, even_costs(2, edge=10.0))
    starts = {action: start for action, start, _ in timeline.spans[1]}

    assert starts[Action(1, "F", 0)] == 11
    assert starts[Action(1, "F", 1)] == 21


def test_memory_between_input_and_weight_gradient_is_counted() -> None:
    costs = even_costs(1, memory=10.0, weight_memory=4.0)
    row = (Action(0, "F", 0), Action(0, "I", 0), Action(0, "F", 1))
    row += (Action(0, "I", 1), Action(0, "W", 0), Action(0, "W", 1))
    timeline = simulate(Schedule("two", 2, (0,), (row,)), costs)

    assert timeline.peak_memory == (14.0,)
