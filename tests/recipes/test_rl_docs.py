"""`docs/rl.md` does what it says: its files and commands are run as they stand, only shorter."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import write_tiny

from fivefold.__main__ import main
from fivefold.config import apply_overrides
from fivefold.envs.row import read_row
from fivefold.recipes.rl_run import rl_stages
from fivefold.recipes.task_argument import read_task
from fivefold.verify.config import FunctionSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rl.md"
SHORT = (
    "rl.batches=1",
    "rl.sampling.batch_prompts=2",
    "rl.sampling.max_new_tokens=8",
    "rl.algorithm.advantage.group_size=2",
    "rl.algorithm.advantage.zero_variance=zero",
    "rl.evaluation.prompts=2",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def commands(name: str) -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(f"fivefold {name} ")]


def write_files(directory: Path) -> None:
    """Write each file of the page under the name that its command uses."""
    first, judged = blocks("python")
    (directory / "alphabet.py").write_text(first)
    (directory / "vowels.py").write_text(judged)
    (row,) = blocks("json")
    rows = [row.replace("25", str(25 + n)).replace("42", str(42 + n)) for n in range(8)]
    (directory / "sums.jsonl").write_text("".join(rows))


def test_task_and_commands_are_ten_lines() -> None:
    first = blocks("python")[0] + blocks("sh")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("number", range(3))
def test_each_command_of_the_page_runs(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    write_tiny(tmp_path / "runs/nano/adapt_dsa/checkpoint")
    line = commands("rl")[number]
    fewer = re.sub(r"--sft \d+", "--sft 6", shlex.join(line))
    monkeypatch.setattr(sys, "argv", [*shlex.split(fewer), *SHORT, "--threads", "1"])
    main()
    said = capsys.readouterr().err
    _, _, talk = said.rpartition("next: ")
    trained = Path(shlex.split(talk)[2])
    assert (trained / "model.safetensors").is_file()
    assert (trained.parents[1] / "report.html").is_file()
    if number == 0:
        assert commands("chat") == [shlex.split(talk)]
    assert len(commands("rl")) == 3


def test_command_that_counts_attempts_runs_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    write_tiny(tmp_path / "runs/sums/rl/checkpoint")
    (line,) = commands("attempts")
    monkeypatch.setattr(sys, "argv", [*line, "attempts.max_new_tokens=8", "--threads", "1"])
    main()
    chosen = Path("runs/attempts-sums/choose")
    assert f"(k, n) of each problem: {chosen}/counts/sums.jsonl" in capsys.readouterr().err
    assert len((chosen / "counts/sums.jsonl").read_text().splitlines()) == 7  # one is held out


def test_fields_that_a_reward_does_not_see_are_named() -> None:
    sentence = re.search(
        r"field of yours, but not (.*?):", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert sentence is not None
    row = {
        "prompt": "Say 1.",
        "answer": 1,
        "verifier": {"kind": "function", "target": "mine:reward"},
        "id": "one",
        "difficulty": 2,
        "thinking": "1 is 1",
        "solution": "1",
        "mine": "yes",
    }
    spec = read_row(row, task="t", index=0, where="row").spec
    assert isinstance(spec, FunctionSpec)
    named = set(re.findall(r"`(.*?)`", sentence[1]))
    assert row.keys() - spec.arguments.keys() == named - {"messages"}
    assert "messages" in named


def test_table_of_settings_states_the_defaults(tmp_path: Path) -> None:
    write_files(tmp_path)
    checkpoint = write_tiny(tmp_path / "checkpoint")
    task = read_task(f"{tmp_path}/alphabet.py", verifier="exact")
    stages = {s.name: s.config for s in rl_stages(checkpoint, task, tmp_path, sft=9)}
    table = PAGE.read_text(encoding="utf-8").partition("## Settings")[2]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE)
    stated = [
        (name, value)
        for names, values in rows
        for name, value in zip(re.findall(r"`(.*?)`", names), values.split(", "), strict=True)
    ]
    assert len(stated) >= 10
    for name, value in stated:
        if value != "from the task":
            assert apply_overrides(stages, [f"{name}={value}"]) == stages, name
