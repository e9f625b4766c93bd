"""A task is looked at before it trains: what cannot work ends the run, what is unwise is told."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import context_of

from fivefold.envs.config import FileConfig, FunctionTaskConfig
from fivefold.envs.file_task import FileTask
from fivefold.envs.open_task import open_task
from fivefold.envs.task import Problem, TaskError
from fivefold.report.block import draw_block
from fivefold.rl.own_task import OwnTaskConfig, OwnTaskStage, judge_ahead
from fivefold.verify.config import VerifierConfig
from fivefold.verify.verifier import Verifier

TASK = """
def problem(index, seed):
    return {{"prompt": f"Say {{index}}.", "solution": str(index), "right": str(index)}}


def reward(answer, row):
    return {reward}
"""


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(VerifierConfig()) as verifier:
        yield verifier


def problems_of(tmp_path: Path, reward: str) -> list[Problem]:
    path = tmp_path / f"task{len(list(tmp_path.iterdir()))}.py"
    path.write_text(TASK.format(reward=reward))
    judge = {"kind": "function", "target": f"{path}:reward"}
    task = open_task(FunctionTaskConfig(target=f"{path}:problem", verifier=judge))
    return [task.problem(index) for index in range(3)]


def test_right_solutions_are_counted(tmp_path: Path, verifier: Verifier) -> None:
    found = judge_ahead(problems_of(tmp_path, 'float(answer == row["right"])'), verifier)
    assert (found.solved, found.unsolved, found.warnings) == (3, 0, ())


def test_reward_that_raises_on_nonsense_is_told_once(tmp_path: Path, verifier: Verifier) -> None:
    found = judge_ahead(problems_of(tmp_path, 'int(answer) == int(row["right"])'), verifier)
    assert found.solved == 3
    said, silent = found.warnings
    assert "the answer `?` cannot be judged" in said
    assert "an empty answer cannot be judged" in silent
    for warning in found.warnings:
        assert "ValueError" in warning
        assert "return 0 for what is no answer" in warning


def test_reward_that_raises_on_silence_alone_is_told(tmp_path: Path, verifier: Verifier) -> None:
    share = 'sum(letter in row["right"] for letter in answer) / len(answer)'
    (warning,) = judge_ahead(problems_of(tmp_path, share), verifier).warnings
    assert "an empty answer cannot be judged (the reward function raised ZeroDivision" in warning


def test_solution_has_nothing_to_exceed_where_nonsense_cannot_be_judged(
    tmp_path: Path, verifier: Verifier
) -> None:
    # The reward is minus the distance: 0 at best, and no number without one.
    found = judge_ahead(problems_of(tmp_path, '-abs(int(answer) - int(row["right"]))'), verifier)
    assert found.solved == 3
    assert len(found.warnings) == 2


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("0.0", "reward 0"),
        ("1.0", "reward 1"),
        ("1.0 - len(answer)", "reward 0"),
        ("1 / 0", "invalid: the reward function raised ZeroDivisionError"),
        ('float("nan")', "nan, no number of at most"),
    ],
)
def test_solution_that_is_not_rewarded_ends_the_run(
    tmp_path: Path, verifier: Verifier, reward: str, words: str
) -> None:
    with pytest.raises(TaskError, match="the verifier to reward the solution") as refusal:
        judge_ahead(problems_of(tmp_path, reward), verifier)
    assert words in str(refusal.value)


def test_file_is_split_without_a_change_to_its_rows(tmp_path: Path) -> None:
    rows = [
        json.dumps({"prompt": f"Say «{n}».", "answer": n, "id": n}, ensure_ascii=False)
        for n in range(30)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(rows), encoding="utf-8")
    config = OwnTaskConfig(task=FileConfig(path=str(path), verifier="number"))
    out = tmp_path / "run" / "task"
    out.mkdir(parents=True)
    OwnTaskStage("task", config).execute({}, out, context_of(tmp_path / "run"))
    train, heldout = (
        (out / part / "mine.jsonl").read_text(encoding="utf-8").splitlines()
        for part in ("train", "heldout")
    )
    assert sorted([*train, *heldout]) == sorted(rows)
    assert len(heldout) == 3
    for block in (out / "page").iterdir():
        page = str(draw_block(block))
        assert "cannot be drawn" not in page
    assert "Say «" in (out / "page" / "10_problems.json").read_text(
        encoding="utf-8"
    ).encode().decode("unicode_escape")


@pytest.mark.parametrize("form", ["rows", "gsm8k"])
def test_row_without_an_id_keeps_its_name_when_the_file_grows(tmp_path: Path, form: str) -> None:
    def split(name: str, count: int) -> dict[str, str]:
        path = tmp_path / name / "mine.jsonl"
        path.parent.mkdir()
        rows = [
            {"question": f"What is «{n}»?", "answer": f"It is.\n#### {n}"} for n in range(count)
        ]
        if form == "rows":
            rows = [{"prompt": row["question"], "answer": n} for n, row in enumerate(rows)]
        text = [json.dumps(row, ensure_ascii=False) for row in rows]
        # The first comes three times, and the last has a name.
        last = json.dumps({"id": "last", **rows[-1]})
        path.write_text("\n".join([text[0], f" {text[0]}", *text[:-1], last]), encoding="utf-8")
        task = FileConfig(path=str(path), verifier="number" if form == "rows" else None, form=form)  # pyright: ignore[reportArgumentType]
        out = tmp_path / f"{name}-out"
        out.mkdir()
        OwnTaskStage("task", OwnTaskConfig(task=task)).execute({}, out, context_of(tmp_path))
        named = dict[str, str]()
        for part in ("train", "heldout"):
            divided = task.model_copy(update={"path": str(out / part / path.name)})
            named |= {row.id: row.prompt[0].content for row in FileTask(divided).rows}
        return named

    few, many = split("few", 20), split("many", 50)
    assert len(few) == 22
    assert sum("«0»" in prompt for prompt in few.values()) == 3
    assert {"last"} == {name for name in few if few[name] != many.get(name)}


def test_python_task_is_kept_as_it_was(tmp_path: Path) -> None:
    problems_of(tmp_path, "len(answer)")
    (path,) = tmp_path.glob("*.py")
    config = OwnTaskConfig(
        task=FunctionTaskConfig(target=f"{path}:problem", verifier="format"), judged=0
    )
    out = tmp_path / "run" / "task"
    out.mkdir(parents=True)
    OwnTaskStage("task", config).execute({}, out, context_of(tmp_path / "run"))
    assert (out / path.name).read_text() == path.read_text()
