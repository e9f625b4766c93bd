"""`fivefold attempts` as a user types it: counts, answers, problems for RL, a better checkpoint."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_learning import Given

from fivefold.__main__ import main
from fivefold.data.attempts import PassCount, read_pass_counts
from fivefold.data.conversation_file import read_conversations
from fivefold.errors import ConfigError, MissingFileError
from fivefold.metrics import read_metrics
from fivefold.models.convert import read_checkpoint
from fivefold.recipes.attempt_command import attempts
from fivefold.recipes.attempt_learn import TooFewAnswersError
from fivefold.recipes.attempt_run import attempt_stages
from fivefold.recipes.task_argument import read_task
from fivefold.rl.loop_config import SamplingConfig
from fivefold.rl.own_task import OwnTaskConfig

TASK = """
def problem(index, seed):
    return {"id": f"p{index}", "prompt": f"up {'abcdefghij'[index % 10]}"}


def reward(answer, arguments):
    return float(any(letter in answer for letter in "aeio"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("attempts")
    (root / "task.py").write_text(TASK)
    Given("given", SamplingConfig()).execute({}, root, SimpleNamespace(seed=0))  # pyright: ignore[reportArgumentType]
    return root


@pytest.mark.e2e
def test_attempts_become_counts_answers_problems_and_a_checkpoint(place: Path) -> None:
    run = place / "run"
    options: dict[str, Any] = {
        "task": str(place / "task.py"),
        "n": 6,
        "problems": 24,
        "thinking": "off",
    }
    overrides = ("attempts.max_new_tokens=16", "choose.heldout_share=0.2", "attempts.shown=1")
    common = {"run_dir": run, "learn": True, "device": "cpu", "threads": 1}
    attempts(place / "checkpoint", overrides, **options, **common)
    counts = read_pass_counts(run / "choose" / "counts" / "task.jsonl")
    assert sorted(counts) == sorted(f"p{n}" for n in range(24))
    assert all(count.n == 6 for count in counts.values())
    learned = list(read_conversations(run / "choose" / "task.jsonl"))
    assert all(set("aeio") & set(c.messages[-1].content) for c in learned)
    rows = (run / "choose" / "task" / "task.jsonl").read_text().splitlines()
    kept = {json.loads(row)["id"] for row in rows}
    assert kept == {key for key, (k, n) in counts.items() if 0 < k < n}
    before, after = (
        read_checkpoint(directory / "checkpoint").state_dict() for directory in (place, run / "sft")
    )
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert "task: how often each problem was solved" in (run / "report.html").read_text()
    records = read_metrics(run / "metrics.jsonl")
    attempts(place / "checkpoint", overrides, **options, **common)
    assert read_metrics(run / "metrics.jsonl") == records


@pytest.mark.e2e
def test_next_command_is_whole_and_runs_elsewhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how prompts open and where the run lives, and finds the task's reward function."""
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    Path("elsewhere").mkdir()
    overrides = ("attempts.max_new_tokens=16",)
    options: dict[str, Any] = {
        "task": "task.py",
        "n": 4,
        "problems": 8,
        "thinking": "off",
        "threads": 1,
    }
    attempts(place / "checkpoint", overrides, **options, run_dir=tmp_path / "run", device="cpu")
    said = capsys.readouterr().err
    assert f"(k, n) of each problem: {tmp_path}/run/choose/counts/task.jsonl" in said
    *_, last = said.splitlines()
    command = last.removeprefix("next: fivefold ")
    assert command.endswith(f"task/task.jsonl --thinking off -o {tmp_path}/run-rl")
    monkeypatch.chdir("elsewhere")
    short = (
        "rl.batches=1 rl.sampling.batch_prompts=2 rl.sampling.max_new_tokens=16 "
        "rl.algorithm.advantage.group_size=4 rl.algorithm.advantage.zero_variance=zero "
        "rl.evaluation.prompts=2 --threads 1 --device cpu"
    )
    monkeypatch.setattr(sys, "argv", shlex.split(f"fivefold {command} {short}"))
    main()
    assert (tmp_path / "run-rl" / "rl" / "checkpoint" / "config.json").is_file()
    monkeypatch.chdir(tmp_path)
    # What that run has sampled counts too.
    common: dict[str, Any] = {
        "run_dir": tmp_path / "run",
        "device": "cpu",
        "from_run": tmp_path / "run-rl",
    }
    attempts(place / "checkpoint", overrides, **options, **common)
    tried, ours, both = (
        read_pass_counts(tmp_path / "run" / stage / "counts" / "task.jsonl")
        for stage in ("attempts", "counted", "choose")
    )
    assert sum(count.n for count in ours.values()) == 8
    nothing = PassCount(0, 0)
    assert both == {key: tried[key].plus(ours.get(key, nothing)) for key in tried}
    common["from_run"] = tmp_path
    with pytest.raises(MissingFileError, match="dumps_kept"):
        attempts(place / "checkpoint", overrides, **options, **common)


@pytest.mark.e2e
def test_nothing_to_learn_is_told_with_reasons_and_what_helps(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {
        "task": str(place / "task.py"),
        "n": 2,
        "problems": 4,
        "thinking": "off",
    }
    common: dict[str, Any] = {
        "run_dir": tmp_path / "run",
        "learn": True,
        "device": "cpu",
        "threads": 1,
    }
    with pytest.raises(TooFewAnswersError) as refusal:
        # One token is no whole answer.
        attempts(place / "checkpoint", ("attempts.max_new_tokens=1",), **options, **common)
    told = str(refusal.value)
    assert "answers to at least 2 problems" in told
    assert "of 8 answers, 8 (problem solved too rarely) were dropped; " in told
    assert "`--levels`" in told
    said = capsys.readouterr().err
    cut = re.search(r"; (\d) cut at 1 tokens", said)
    assert cut is not None
    assert f"{cut[1]} of them all were cut at the token limit" in told
    assert f"(k, n) of each problem: {tmp_path}/run/choose/counts/task.jsonl" in said
    assert "fivefold rl" in said
    assert not (tmp_path / "run" / "sft" / "checkpoint").exists()


def test_task_knows_what_is_tried(place: Path) -> None:
    def looked_at(*overrides: str, **options: Any) -> OwnTaskConfig:
        task = read_task(str(place / "task.py"))
        stages = attempt_stages(
            place / "checkpoint", task, place / "planned", overrides=overrides, **options
        )
        config = stages[1].config
        assert isinstance(config, OwnTaskConfig)
        return config

    assert looked_at(problems=5000).trained == 5000
    later = ("attempts.sources.task.begin=7", "attempts.max_new_tokens=20")
    assert looked_at(*later, problems=4).trained == 11
    longer, shorter = (
        looked_at(f"attempts.max_new_tokens={tokens}").longest_prompt_tokens for tokens in (16, 20)
    )
    assert longer is not None
    assert shorter == longer - 4
    assert looked_at("task.trained=3", "task.heldout=5").trained == 3
    with pytest.raises(ConfigError, match=r"`attempts\.max_new_tokens` that leave room"):
        looked_at("attempts.max_new_tokens=100000")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"n": 0}, "`attempts.attempts`"), ({"problems": 0}, "`attempts.sources.task.problems`")],
)
def test_nonsense_is_one_paragraph(place: Path, options: dict[str, int], named: str) -> None:
    task = str(place / "task.py")
    with pytest.raises(ConfigError, match="greater than 0") as refusal:
        attempts(place / "checkpoint", task=task, run_dir=place / "wrong", **options)  # pyright: ignore[reportArgumentType]
    assert named in str(refusal.value)


def test_problems_that_were_kept_are_a_task_for_rl(place: Path) -> None:
    chosen = place / "run" / "choose" / "task" / "task.jsonl"
    stages = attempt_stages(place / "checkpoint", read_task(str(chosen)), place / "again")
    assert [stage.name for stage in stages] == ["start", "task", "attempts", "choose"]


def test_command_tells_what_is_wrong(place: Path) -> None:
    with pytest.raises(ConfigError, match="a skill, `gym:NAME`"):
        attempts(place / "checkpoint", task="nothing", run_dir=place / "wrong")
    with pytest.raises(ConfigError, match="temperature"):
        attempts(
            place / "checkpoint", ("attempts.temperature=0",), task="copy", run_dir=place / "wrong"
        )
    help_text = subprocess.run(
        [sys.executable, "-m", "fivefold", "attempts", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--problems" in help_text
