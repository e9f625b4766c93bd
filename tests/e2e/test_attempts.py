"""`fivefold attempts` as a user types it: counts, answers, problems for RL, a better checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_learning import Given

from fivefold.data.attempts import read_pass_counts
from fivefold.data.conversation_file import read_conversations
from fivefold.errors import ConfigError
from fivefold.metrics import read_metrics
from fivefold.models.convert import read_checkpoint
from fivefold.recipes.attempt_command import attempts
from fivefold.recipes.attempt_run import attempt_stages
from fivefold.recipes.task_argument import read_task
from fivefold.rl.loop_config import SamplingConfig

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
    options = {"task": str(place / "task.py"), "n": 6, "problems": 24, "thinking": "off"}
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
