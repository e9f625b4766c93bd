"""The run's record of numbers: appended, cut by kills, taken up again."""

import json
import math
from pathlib import Path

import pytest

from fivefold.errors import CorruptFileError
from fivefold.metrics import StageMetrics, read_metrics


def bind(path: Path, stage: str = "pretrain", **options) -> StageMetrics:
    return StageMetrics(path, stage, clock=lambda: 1234.56789, **options)


def steps(path: Path, stage: str = "pretrain") -> list[int]:
    return [record["step"] for record in read_metrics(path) if record["stage"] == stage]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_write_appends_whole_records(path: Path) -> None:
    bind(path).write(1, {"train/loss_nats": 3.25, "train/tokens": 4096.0})
    bind(path, "sft").write(2, {"train/loss_nats": 2})
    assert read_metrics(path) == [
        {
            "stage": "pretrain",
            "step": 1,
            "time_seconds": 1234.568,
            "train/loss_nats": 3.25,
            "train/tokens": 4096,
        },
        {"stage": "sft", "step": 2, "time_seconds": 1234.568, "train/loss_nats": 2},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -0.1, 2.0**60, 0.0])
def test_every_number_survives_strict_json(path: Path, value: float) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    bind(path).write(1, {"x": value})
    record = json.loads(path.read_text(), parse_constant=refuse)
    assert float(record["x"]) == value or (math.isnan(value) and record["x"] == "nan")


def test_write_shows_the_console_line_once(path: Path) -> None:
    shown: list[str] = []
    metrics = bind(path, show=shown.append)
    metrics.write(1, {"x": 1}, shown="step 1")
    metrics.write(2, {"x": 1})
    assert shown == ["step 1"]


def test_read_gives_nothing_where_there_is_no_file(path: Path) -> None:
    assert read_metrics(path) == []


@pytest.mark.parametrize("kept_bytes", [1, 20, -1, -2])
def test_read_leaves_out_a_last_line_cut_anywhere(path: Path, kept_bytes: int) -> None:
    bind(path).write(1, {"x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept_bytes])
    # Cut before the newline alone, the record is whole.
    assert steps(path) == ([1, 1] if kept_bytes == -1 else [1])


@pytest.mark.parametrize("kept_bytes", [1, 20, -1])
def test_write_after_a_cut_line_leaves_a_readable_file(path: Path, kept_bytes: int) -> None:
    bind(path).write(1, {"x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept_bytes])
    again = bind(path)
    again.write(2, {"x": 1})
    again.write(3, {"x": 1})
    assert steps(path) == [1, 2, 3]


def test_read_refuses_a_damaged_line_in_the_middle(path: Path) -> None:
    bind(path).write(1, {"x": 1})
    path.write_text('{"stage": "pre\n' + path.read_text())
    with pytest.raises(CorruptFileError, match="line 1"):
        read_metrics(path)


def test_forget_after_drops_later_steps_of_this_stage_only(path: Path) -> None:
    for stage in ("pretrain", "sft"):
        for step in range(4):
            bind(path, stage).write(step, {"x": 1})
    bind(path).forget_after(1)
    assert steps(path) == [0, 1]
    assert steps(path, "sft") == [0, 1, 2, 3]


def test_forget_after_minus_one_drops_all_of_the_stage(path: Path) -> None:
    bind(path).write(0, {"x": 1})
    bind(path).forget_after(-1)
    assert read_metrics(path) == []


def test_forget_after_makes_no_file_and_leaves_no_other(path: Path) -> None:
    bind(path).forget_after(3)
    assert not path.exists()
    bind(path).write(1, {"x": 1})
    bind(path).forget_after(3)
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]


def test_killed_and_resumed_run_leaves_the_same_record(path: Path, tmp_path: Path) -> None:
    straight = bind(tmp_path / "straight.jsonl")
    for step in range(6):
        straight.write(step, {"x": step / 7})
    first = bind(path)
    for step in range(4):
        first.write(step, {"x": step / 7})
    path.write_bytes(path.read_bytes()[:-9])
    second = bind(path)
    second.forget_after(1)
    for step in range(2, 6):
        second.write(step, {"x": step / 7})
    assert path.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
