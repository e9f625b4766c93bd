from rich.console import Console

from fivefold.plan.make_schedule import make_schedule, rank_costs
from fivefold.plan.schedule_table import render_timeline
from fivefold.plan.simulate import simulate


def test_rank_costs_make_schedules_comparable() -> None:
    work = set()
    for name, chunks in (("1f1b", 1), ("interleaved", 3), ("zb_v", 2)):
        costs = rank_costs(name, 4, chunks=chunks, forward=2.0, input_gradient=2.5)
        timeline = simulate(make_schedule(name, 4, 8, chunks=chunks), costs)
        work |= {round(busy, 9) for busy in timeline.work}

    assert work == {8 * (2.0 + 2.5 + 1.0)}


def test_render_timeline_names_bubble_and_memory() -> None:
    timeline = simulate(make_schedule("1f1b", 4, 8), rank_costs("1f1b", 4))
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(render_timeline(timeline))
    lines = capture.get().splitlines()

    assert "bubble 27.3%, makespan 33" in lines[0]
    assert lines[2].split() == ["0", "0", "33", "72.7%", "27.3%", "4"]
    assert len(lines) == 6
