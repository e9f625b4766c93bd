"""No prompt is held out and trained on; where a task has no other prompts, that is said."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import context_of

from fivefold.envs.config import FileConfig, FunctionTaskConfig
from fivefold.envs.open_task import open_task
from fivefold.envs.task import Task, TaskError, prompt_key
from fivefold.rl.heldout import choose_ahead, choose_rows
from fivefold.rl.own_task import OwnTaskConfig, OwnTaskStage
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

QUESTIONS = """
import random


def problem(index, seed):
    number = random.Random(index).randrange({questions})
    return {{"id": {id}, "prompt": f"Say {{number}}.", "answer": number, "verifier": "number"}}
"""


def write_task(tmp_path: Path, questions: int, problem_id: str = "f'n{index}'") -> Path:
    path = tmp_path / "asks.py"
    path.write_text(QUESTIONS.format(questions=questions, id=problem_id))
    return path


def opened(path: Path) -> Task:
    return open_task(FunctionTaskConfig(target=f"{path}:problem"))


def look(tmp_path: Path, path: Path, **fields: object) -> Path:
    """Run the stage on a function of a file; returns its directory."""
    task = FunctionTaskConfig(target=f"{path}:problem")
    config = OwnTaskConfig(task=task, judged=2).model_copy(update=fields)
    out = tmp_path / "run" / "task"
    out.mkdir(parents=True)
    OwnTaskStage("task", config).execute({"start": tmp_path}, out, context_of(tmp_path / "run"))
    return out


@settings(max_examples=20)
@given(size=st.integers(1, 3000), share=st.sampled_from([0.0, 0.1, 0.3]))
def test_held_out_rows_are_a_fixed_share_up_to_a_limit(size: int, share: float) -> None:
    rows = choose_rows(range(size), share, 64)
    assert rows == sorted(set(rows)) == choose_rows(range(size), share, 64)
    assert all(0 <= row < size for row in rows)
    wanted = 0 if size < 5 or not share else min(max(round(size * share), 1), 64)
    assert len(rows) == wanted


@settings(max_examples=20)
@given(keys=st.lists(st.integers(0, 9), max_size=40))
def test_row_whose_prompt_comes_twice_is_never_held_out(keys: list[int]) -> None:
    rows = choose_rows(keys, 0.5, 64)
    kept = [key for row, key in enumerate(keys) if row not in rows]
    assert not {keys[row] for row in rows} & set(kept)
    alone = [key for key in keys if keys.count(key) == 1]
    wanted = max(round(len(keys) * 0.5), 1) if len(keys) >= 5 else 0
    assert len(rows) == min(wanted, len(alone))


@pytest.mark.parametrize("questions", [40, 10**9])
def test_problems_ahead_are_none_that_train_and_none_twice(tmp_path: Path, questions: int) -> None:
    task = opened(write_task(tmp_path, questions))
    trained = {prompt_key(task.problem(index)) for index in range(30)}
    seen = list[str]()
    found = choose_ahead(task, trained, 8, lambda problem: seen.append(problem.id))
    keys = {prompt_key(problem) for problem in found.problems}
    assert len(keys) == len(found.problems) == len(seen) == 8
    assert not keys & trained
    assert not found.trains
    assert (found.passed_over > 0) == (questions == 40)


def test_task_without_other_questions_is_examined_on_its_own(tmp_path: Path) -> None:
    task = opened(write_task(tmp_path, 3))
    trained = {prompt_key(task.problem(index)) for index in range(30)}
    found = choose_ahead(task, trained, 8, lambda problem: None)
    assert found.trains
    assert {prompt_key(problem) for problem in found.problems} == trained
    assert len(found.problems) == 3
    # Not the very problems that train: who writes both by their ids keeps both.
    assert all(int(problem.id[1:]) > 2**29 for problem in found.problems)
    assert not choose_ahead(task, trained, 0, lambda problem: None).problems


@pytest.mark.parametrize(
    ("questions", "trained", "words"),
    [
        (10**9, 30, None),
        (60, 30, "problems are held out;"),
        (3, 30, "their pass rate says nothing of new problems"),
        (33, 30, " of 20 problems are held out;"),
    ],
)
def test_stage_writes_them_and_warns(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    questions: int,
    trained: int,
    words: str | None,
) -> None:
    path = write_task(tmp_path, questions, "'same'")
    with caplog.at_level(logging.WARNING):
        out = look(tmp_path, path, trained=trained, heldout=20, name="mine")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (words is not None)
    assert not words or words in told[0]
    heldout = open_task(FileConfig(path=str(out / "heldout" / "mine.jsonl"), order="file"))
    task = opened(path)
    keys = {prompt_key(task.problem(index)) for index in range(trained)}
    assert heldout.size is not None
    again = [heldout.problem(index) for index in range(heldout.size)]
    overlap = [prompt_key(problem) in keys for problem in again]
    assert any(overlap) == all(overlap) == (questions == 3)
    assert len(again) == 20 or questions in (3, 33, 60)
    assert all(p.solution is not None and p.solution.content in p.prompt[0].content for p in again)
    rows = dict(json.loads((out / "page" / "20_ahead.json").read_text())["rows"])
    assert rows["problems held out"] == len(again)
    assert rows["different prompts among them"] == len(keys)
    passed_over = rows["passed over: their prompts train, or came before"]
    assert (passed_over > 0) == (words is not None)
    assert not words or f"{passed_over} " in told[0]


def test_rows_with_one_prompt_stay_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": f"Say {n % 12}.", "answer": n % 12, "id": n} for n in range(20)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    task = FileConfig(path=str(path), verifier="number", malformed="skip")
    out = tmp_path / "run" / "task"
    out.mkdir(parents=True)
    config = OwnTaskConfig(task=task, heldout_share=0.9)
    OwnTaskStage("task", config).execute({}, out, context_of(tmp_path / "run"))
    train, heldout = (
        [json.loads(line) for line in (out / part / path.name).read_text().splitlines()]
        for part in ("train", "heldout")
    )
    assert len(train) == 16
    assert {row["id"] for row in heldout} == {8, 9, 10, 11}
    assert "16 rows share their prompt with another" in caplog.text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(["Say 1." * 99], TokenizerConfig(vocab_size=421)))


@pytest.fixture
def measured(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """Look at a task whose problem 150 has 30 words more, with a limit of prompt tokens."""
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "asks.py"
    path.write_text(
        "def problem(index, seed):\n"
        "    return {'prompt': 'Say 1.' + ' 1' * (30 if index == LONG else index % 3),\n"
        "            'answer': '1', 'verifier': 'exact'}\n"
    )

    def run(long: int, limit: int, **fields: object) -> Path:
        path.write_text(path.read_text().replace("LONG", str(long)))
        return look(tmp_path, path, longest_prompt_tokens=limit, **fields)

    return run


@pytest.mark.parametrize("long", [150, 2**30])
def test_prompt_that_is_too_long_ends_the_run_before_it_trains(
    measured: Callable[..., Path], long: int
) -> None:
    with pytest.raises(TaskError, match=r"at most 20 tokens.*1 longer ones of 20\d") as refusal:
        measured(long, 20, trained=200, heldout=1)
    assert f"asks/{long}" in str(refusal.value)


def test_prompt_that_is_never_asked_does_not_count(measured: Callable[..., Path]) -> None:
    assert (measured(150, 20, trained=100, heldout=1) / "heldout" / "asks.jsonl").is_file()


def test_limit_is_the_last_length_that_fits(measured: Callable[..., Path]) -> None:
    assert measured(-1, 20, trained=9, heldout=1, thinks=False)
