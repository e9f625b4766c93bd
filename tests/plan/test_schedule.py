import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.errors import ConfigError
from fivefold.plan.make_schedule import NAMES, make_schedule, placement_of
from fivefold.plan.schedule import Action, find_faults, schedule_to_csv
from fivefold.plan.simulate import even_costs, simulate

_SIZES = {"ranks": st.integers(1, 9), "microbatches": st.integers(1, 30)}


@settings(max_examples=80)
@given(name=st.sampled_from(NAMES), chunks=st.integers(1, 4), **_SIZES)
def test_schedule_any_size_is_valid(name: str, ranks: int, microbatches: int, chunks: int) -> None:
    schedule = make_schedule(name, ranks, microbatches, chunks=chunks)

    assert find_faults(schedule) == []
    assert schedule.rank_of_stage == placement_of(name, ranks, chunks)


@settings(max_examples=8)
@given(**_SIZES)
def test_schedule_memory_stays_within_its_promise(ranks: int, microbatches: int) -> None:
    promises = {"1f1b": ranks, "zb_h1": ranks, "zb_h2": 2 * ranks - 1, "automatic": ranks}
    promises |= {"zb_v": 2 * ranks, "v_half": ranks + 2, "v_min": (2 * ranks + 2) // 3 + 3}
    for name, most in promises.items():
        schedule = make_schedule(name, ranks, microbatches)
        peak = max(simulate(schedule, even_costs(schedule.stages)).peak_memory)

        assert peak <= most, name


def test_one_f_one_b_rank_holds_those_behind_it() -> None:
    peaks = simulate(make_schedule("1f1b", 6, 20), even_costs(6)).peak_memory

    assert peaks == (6, 5, 4, 3, 2, 1)


def test_interleaved_holds_a_pipeline_and_a_bit() -> None:
    # Megatron-LM: 1 + (p - 1) / (p v) of the memory of 1F1B, here in chunks of a third.
    schedule = make_schedule("interleaved", 4, 16, chunks=3)
    peaks = simulate(schedule, even_costs(12)).peak_memory

    assert max(peaks) == 4 * 3 + (4 - 1)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda row: row[:-1], "does F, I"),
        (lambda row: (*row, row[-1]), "stands twice"),
        (lambda row: (*row, Action(1, "W", 0)), "runs stages of other ranks"),
        (lambda row: row[::-1], "deadlock"),
        (lambda row: (*row, Action(0, "F", 99)), "does not exist"),
    ],
)
def test_find_faults_names_the_damage(damage, complaint: str) -> None:
    schedule = make_schedule("zb_h1", 3, 6)
    broken = dataclasses.replace(
        schedule, actions=(damage(schedule.actions[0]), *schedule.actions[1:])
    )

    assert complaint in " ".join(find_faults(broken))


def test_find_faults_sees_a_deadlock_between_ranks() -> None:
    # Both ranks have every action once, but rank 1 wants microbatch 1 before rank 0 may send it.
    schedule = make_schedule("1f1b", 2, 2)
    first = (Action(0, "F", 0), Action(0, "B", 0), Action(0, "F", 1), Action(0, "B", 1))
    second = (Action(1, "F", 0), Action(1, "F", 1), Action(1, "B", 0), Action(1, "B", 1))
    crossed = dataclasses.replace(schedule, actions=(first, second))

    assert find_faults(crossed) == ["deadlock: rank 0 before 0B0; rank 1 before 1F1"]


def test_csv_is_a_rank_a_line() -> None:
    assert schedule_to_csv(make_schedule("1f1b", 2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"


@pytest.mark.parametrize(
    "arguments", [("1f2b", 4, 8), ("1f1b", 0, 8), ("zb_v", 4, 0)], ids=["name", "ranks", "batch"]
)
def test_make_schedule_refuses_nonsense(arguments: tuple) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        make_schedule(*arguments)
