"""The stage `tasks`: what it writes can be learned, is right, and is held out from what trains."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fivefold.config import validate
from fivefold.data.conversation_file import read_conversations
from fivefold.envs.config import FileConfig, FunctionTaskConfig, SolvedConfig, TasksConfig
from fivefold.envs.open_task import open_task
from fivefold.envs.solved import write_solved
from fivefold.envs.stages import TasksStage
from fivefold.envs.task import TaskError
from fivefold.errors import ConfigError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.report.block import draw_block
from fivefold.stage import ProgressTask, StageContext
from fivefold.text.event import TurnEnd
from fivefold.verify.config import ExactSpec, VerifierConfig
from fivefold.verify.verifier import Verifier

FUNCTIONS = Path(__file__).parent / "task_functions.py"


class Bar:
    def advance(self, amount: float = 1, **shown: str) -> None:
        pass


@contextmanager
def track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    yield Bar()


def solved(problems: int = 40, **fields: object) -> SolvedConfig:
    task = {"kind": "procedural", "skill": "sort", "levels": [1, 2]}
    document = {"task": task, "problems": problems, "heldout_problems": 10, **fields}
    return validate(SolvedConfig, document, where="solved")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(config: TasksConfig, out: Path) -> None:
    out.mkdir()
    context = StageContext(0, "cpu", 1, StageMetrics(out.parent / "metrics.jsonl", "tasks"), track)
    TasksStage("tasks", config).execute({}, out, context)


def test_stage_writes_what_fine_tuning_reads(tmp_path: Path) -> None:
    out = tmp_path / "tasks"
    run(TasksConfig(sources={"digits": solved(), "quick": solved(thinks=False)}), out)
    digits, quick = (list(read_conversations(out / f"{n}.jsonl")) for n in ("digits", "quick"))
    assert [c.source for c in digits] == ["digits"] * 50
    assert [c.split for c in digits].count("heldout") == 10
    assert all(c.messages[-1].reasoning_content for c in digits)
    assert all(c.messages[-1].reasoning_content is None for c in quick)
    assert [c.messages[-1].content for c in quick] == [c.messages[-1].content for c in digits]
    counts = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert counts["tasks/train_conversations"] == 80
    assert counts["tasks/heldout_conversations"] == 20
    for block in (out / "page").iterdir():
        assert "cannot be drawn" not in draw_block(block), block
    samples = json.loads((out / "page" / "20_samples.json").read_text())["samples"]
    assert [sample["label"] for sample in samples] == ["digits"] * 2 + ["quick"] * 2


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(TasksConfig(sources={"digits": solved()}), tmp_path / name / "tasks")
    one, two = ((tmp_path / n / "tasks" / "digits.jsonl").read_bytes() for n in ("one", "two"))
    assert one == two


def test_solutions_are_right_and_no_prompt_is_in_both_splits(tmp_path: Path) -> None:
    write_solved("s", solved(problems=200, heldout_problems=50), tmp_path, 0)
    found = list(read_conversations(tmp_path / "s.jsonl"))
    asked = {
        split: {c.messages[0].content for c in found if c.split == split}
        for split in ("train", "heldout")
    }
    assert (len(asked["train"]), len(asked["heldout"])) == (200, 50)
    assert not asked["train"] & asked["heldout"]
    with Verifier(VerifierConfig()) as verifier:
        for conversation in found:
            digits = conversation.messages[0].content.rpartition(": ")[2].split()
            gold = ExactSpec(gold=" ".join(sorted(digits)))
            said = TurnEnd(conversation.messages[-1], False, ())
            assert verifier.verify(said, gold).value == 1


def test_problem_that_comes_again_is_written_once(tmp_path: Path) -> None:
    task = {"kind": "procedural", "skill": "add", "levels": [1]}
    config = solved(problems=300, heldout_problems=0, task=task)
    different = open_task(config.task).size
    assert different == 80
    written = write_solved("s", config, tmp_path, 0)
    assert (written.train, written.repeated) == (different, 300 - different)
    ids = [line["meta"]["id"] for line in lines_of(tmp_path / "s.jsonl")]
    assert len({*ids}) == len(ids) == different


def test_function_s_problem_that_comes_again_is_written_once(tmp_path: Path) -> None:
    task = FunctionTaskConfig(target=f"{FUNCTIONS}:double", size=3)
    written = write_solved(
        "s", SolvedConfig(task=task, problems=9, heldout_problems=0), tmp_path, 0
    )
    assert (written.train, written.repeated) == (3, 6)


def test_problems_of_one_id_are_all_written(tmp_path: Path) -> None:
    """Rows without an id go by their line, in two files; a function may give all one id."""
    for name, words in (("train", "abcd"), ("heldout", "ef")):
        rows = [{"prompt": f"Say {word}", "answer": word, "verifier": "exact"} for word in words]
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {name: str(tmp_path / name / "rows.jsonl") for name in ("train", "heldout")}
    one = FunctionTaskConfig(target=f"{FUNCTIONS}:one_id", size=6)
    for number, config in enumerate(
        (
            SolvedConfig(
                task=FileConfig(path=files["train"], order="file"),
                heldout=FileConfig(path=files["heldout"], order="file"),
                problems=8,
                heldout_problems=2,
            ),
            SolvedConfig(task=one, problems=4, heldout_problems=2),
        )
    ):
        written = write_solved(f"s{number}", config, tmp_path, 0)
        assert (written.train, written.heldout) == (4, 2)
        assert written.repeated == (4 if number == 0 else 0)


def test_task_of_one_s_own_holds_out_what_follows(tmp_path: Path) -> None:
    task = FunctionTaskConfig(target=f"{FUNCTIONS}:judged", size=30)
    written = write_solved(
        "s", SolvedConfig(task=task, problems=20, heldout_problems=10), tmp_path, 1
    )
    assert (written.train, written.heldout) == (20, 10)
    lines = lines_of(tmp_path / "s.jsonl")
    held = {line["messages"][1]["content"] for line in lines if line["split"] == "heldout"}
    assert held == {"x" * length for length in range(21, 31)}


def test_finite_task_that_is_too_small_is_refused(tmp_path: Path) -> None:
    task = FunctionTaskConfig(target=f"{FUNCTIONS}:judged", size=12)
    config = SolvedConfig(task=task, problems=10, heldout_problems=10)
    with pytest.raises(ConfigError, match=r"20 different problems.*found 12"):
        write_solved("s", config, tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_problem_without_a_known_solution_is_refused(tmp_path: Path) -> None:
    row = {
        "prompt": "Say more",
        "verifier": {"kind": "function", "target": f"{FUNCTIONS}:is_longer"},
    }
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_text(json.dumps(row) + "\n")
    out.mkdir()
    config = SolvedConfig(task=FileConfig(path=str(path)), problems=1, heldout_problems=0)
    with pytest.raises(TaskError, match="a solution of"):
        write_solved("s", config, out, 0)
    assert not list(out.iterdir())


def test_held_out_file_of_one_s_own_is_taken(tmp_path: Path) -> None:
    for name in ("train", "test"):
        row = {"prompt": f"Say {name}", "answer": name, "verifier": "exact", "solution": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    config = SolvedConfig(
        task=FileConfig(path=str(tmp_path / "train.jsonl")),
        heldout=FileConfig(path=str(tmp_path / "test.jsonl")),
        problems=1,
        heldout_problems=1,
    )
    write_solved("s", config, out, 0)
    found = {c.split: c.messages[-1].content for c in read_conversations(out / "s.jsonl")}
    assert found == {"train": "train", "heldout": "test"}
