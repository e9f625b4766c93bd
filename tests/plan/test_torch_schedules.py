"""torch's own schedule tables as oracle: its generators are run without processes or stages."""

import pytest

from fivefold.plan.make_schedule import make_schedule
from fivefold.plan.published import BUBBLE_ROWS
from fivefold.plan.schedule import Action, Schedule, find_faults, schedule_to_csv, v_placement
from fivefold.plan.simulate import even_costs, simulate

torch_schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
pytestmark = pytest.mark.numerics


def _torch_rows(kind: str, ranks: int, microbatches: int, chunks: int) -> list[list[Action]]:
    """Return torch's compute-only table; a rank's leading pauses are dropped."""
    planner = object.__new__(getattr(torch_schedules, kind))
    planner.__dict__.update(
        pp_group_size=ranks,
        num_stages=ranks * chunks,
        n_local_stages=chunks,
        microbatches_per_round=ranks,
        _n_microbatches=microbatches,
    )
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    rows = []
    for rank in range(ranks):
        actions = [a for a in planner._calculate_single_rank_operations(rank) if a is not None]
        rows.append(
            [
                Action(a.stage_index, letters[a.computation_type.name], a.microbatch_index)  # pyright: ignore[reportArgumentType]
                for a in actions
            ]
        )
    return rows


@pytest.mark.parametrize(("ranks", "chunks", "microbatches"), [(2, 2, 4), (4, 3, 8), (8, 2, 16)])
def test_interleaved_equals_torch(ranks: int, chunks: int, microbatches: int) -> None:
    ours = make_schedule("interleaved", ranks, microbatches, chunks=chunks)
    theirs = _torch_rows("ScheduleInterleaved1F1B", ranks, microbatches, chunks)

    assert [list(row) for row in ours.actions] == theirs


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 8), (4, 8), (4, 3), (8, 24)])
def test_zb_v_orders_forwards_and_input_gradients_as_torch(ranks: int, microbatches: int) -> None:
    ours = make_schedule("zb_v", ranks, microbatches)
    theirs = _torch_rows("ScheduleZBVZeroBubble", ranks, microbatches, 2)
    for row, their_row in zip(ours.actions, theirs, strict=True):
        assert [a for a in row if a.kind != "W"] == [a for a in their_row if a.kind != "W"]


@pytest.mark.parametrize(
    "row", BUBBLE_ROWS[:9], ids=[f"{r.model}-m{r.microbatches}" for r in BUBBLE_ROWS[:9]]
)
def test_zb_v_is_as_fast_as_torchs_table_under_the_papers_costs(row) -> None:
    times = row.forward / 2, row.input_gradient / 2, row.weight_gradient / 2, row.edge
    costs = even_costs(2 * row.ranks, *times)
    rows = _torch_rows("ScheduleZBVZeroBubble", row.ranks, row.microbatches, 2)
    theirs = Schedule("torch", row.microbatches, v_placement(row.ranks), tuple(map(tuple, rows)))
    assert find_faults(theirs) == []
    ours = make_schedule("zb_v", row.ranks, row.microbatches, costs=costs)

    fast, theirs_fast = (simulate(each, costs).longest_span for each in (ours, theirs))
    assert fast <= theirs_fast * 1.001


def test_csv_is_read_by_torch() -> None:
    schedule = make_schedule("zb_h1", 3, 5)
    parse = torch_schedules._Action.from_str
    for line, row in zip(schedule_to_csv(schedule).splitlines(), schedule.actions, strict=True):
        parsed = [parse(cell) for cell in line.split(",")]

        assert [(a.stage_index, a.microbatch_index) for a in parsed] == [
            (a.stage, a.microbatch) for a in row
        ]
