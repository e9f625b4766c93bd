"""`fivefold rl`: a task of one's own trains a checkpoint; what is wrong with it is told at once."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import write_tiny

from fivefold.__main__ import main
from fivefold.artifact import read_json
from fivefold.envs.config import FileConfig, FunctionTaskConfig, GymConfig, ProceduralConfig
from fivefold.errors import ConfigError, FivefoldError
from fivefold.metrics import read_metrics
from fivefold.models.config import read_config
from fivefold.models.convert import read_checkpoint
from fivefold.recipes.rl_run import rl_stages
from fivefold.recipes.task_argument import OwnTask, read_task
from fivefold.rl.loop_config import RlConfig
from fivefold.rl.own_task import OwnTaskConfig
from fivefold.stage import Stage

LETTERS = """
def problem(index, seed):
    letter = "aeiou"[index % 5]
    return {"prompt": f"Say {letter}.", "answer": letter, "verifier": "exact"}
"""
JUDGED = """
def problem(index, seed):
    return {"prompt": "Say anything.", "wanted": "aeiou"[index % 5]}


def reward(answer, row):
    return sum(letter in "aeiou" for letter in answer) / max(len(answer), 1)
"""
SHORT = (
    "rl.batches=2",
    "rl.sampling.batch_prompts=3",
    "rl.sampling.max_new_tokens=6",
    "rl.algorithm.advantage.group_size=4",
    "rl.algorithm.advantage.zero_variance=zero",
    "rl.sampling.no_signal_limit=5",
    "rl.evaluation.prompts=4",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("start") / "checkpoint")


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run `fivefold rl` in a directory of its own; returns what it said, its exit code in front."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> str:
        line = ["fivefold", "rl", *map(str, arguments), "--threads", "1", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", line)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return f"{code}\n{said}"

    return run


def rewards_of(run: Path) -> list[float]:
    records = read_metrics(run / "metrics.jsonl")
    return [record["rl/reward_mean"] for record in records if "rl/reward_mean" in record]


def test_function_s_task_trains_and_says_where_things_are(
    command: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "vowels.py").write_text(JUDGED)
    given = (checkpoint, "--task", "vowels.py", "--thinking", "off", "-o", "out", *SHORT)
    said = command(*given)
    assert said.startswith("0\n"), said
    assert "report: out/report.html" in said
    talk = "fivefold chat out/rl/checkpoint --no-thinking"
    assert said.endswith(f"checkpoint: out/rl/checkpoint\nnext: {talk}\n")
    assert "batch 2/2  reward 0." in said
    assert "held-out problems solved: vowels" in said
    before, after = (
        read_checkpoint(c).state_dict() for c in (checkpoint, tmp_path / "out/rl/checkpoint")
    )
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What it learned" in page
    assert talk in page
    assert "fivefold rl out/rl/checkpoint --task" in page

    again = command(*given)
    assert "rl: finished before, skipped" in again
    (tmp_path / "vowels.py").write_text(JUDGED + "\n# something else\n")
    anew = command(*given)
    assert "start: finished before, skipped" in anew
    assert "rl: config or inputs changed, earlier result kept" in anew
    assert "found a run of recipe `rl vowels`" in command(checkpoint, "--task", "copy", "-o", "out")


def test_task_s_own_solutions_are_learned_first(
    command: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "letters.py").write_text(LETTERS)
    said = command(
        checkpoint, "--task", "letters.py", "--sft", "60", "sft.validation_steps=100", *SHORT
    )
    assert said.startswith("0\n"), said
    run = tmp_path / "runs" / "rl-letters"
    # Five questions are all that the task has.
    assert len((run / "solved" / "letters.jsonl").read_text().splitlines()) == 60 + 5
    assert "the 5 examined ones train" in " ".join(said.split())
    start = read_json(run / "rl" / "finished.json")
    made = read_json(run / "sft" / "finished.json")
    assert start is not None
    assert made is not None
    assert start["inputs"]["start"] == made["output_digest"]
    # The task's solutions do not think, nor do its prompts.
    assert start["config"]["sampling"]["thinks"] is False


def test_rows_of_a_file_are_held_out_and_judged_by_name(
    command: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Say {n}.", "answer": n} for n in range(20)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    given = (checkpoint, "--task", "sums.jsonl", "--verifier", "number", "-o", "out")
    assert command(*given, *SHORT).startswith("0\n")
    parts = [
        (tmp_path / "out/task" / part / "sums.jsonl").read_text().split("\n")[:-1]
        for part in ("train", "heldout")
    ]
    # Only ids are added.
    named = [json.loads(line) for part in parts for line in part]
    assert len({row.pop("id") for row in named}) == 20
    assert sorted(named, key=lambda row: row["answer"]) == rows
    assert [len(part) for part in parts] == [18, 2]


def test_reward_that_raises_is_counted_and_shown(
    command: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    broken = JUDGED.replace(
        "return sum(", 'raise ValueError(f"no vowel {len(answer)}")\n    return sum('
    )
    (tmp_path / "broken.py").write_text(broken)
    given = ("--task", "broken.py", "--thinking", "off", "-o", "out", *SHORT[:4])
    said = command(checkpoint, *given, "rl.evaluation.prompts=0", "rl.sampling.no_signal_limit=2")
    assert said.startswith("2\n"), said
    assert "such rollouts are left out and counted" in " ".join(said.split())
    assert "invalid: the reward function raised ValueError: no vowel" in said
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert not any("rl/reward_mean" in record for record in records)
    assert [r["rl/rollouts_invalid"] for r in records if "rl/rollouts_invalid" in r] == [24, 24]
    assert "rollouts left out" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Why rollouts could not be judged" in page
    assert "raised ValueError: no vowel" in page
    assert "report: out/report.html" in said


FAULTS = {
    "unknown task": (("--task", "revers"), "a skill, `gym:NAME`, or a file"),
    "missing file": (("--task", "none.jsonl"), "a task file at `none.jsonl`"),
    "levels of a file": (("--task", "rows.jsonl", "--levels", "1"), "`--levels`"),
    "unknown level": (("--task", "add", "--levels", "9"), "levels from 1 to 4"),
    "verifier of a skill": (("--task", "add", "--verifier", "exact"), "`--verifier`"),
    "unknown verifier": (("--task", "rows.jsonl", "--verifier", "exakt"), "Did you mean `exact`"),
    "spec that is no JSON": (("--task", "rows.jsonl", "--verifier", "{"), "a spec in JSON"),
    "malformed row": (("--task", "bad.jsonl", "--verifier", "exact"), "the first in line 2"),
    "no such function": (("--task", "rows.py:make"), "a function `make`"),
    "no solutions": (("--task", "rows.py", "--sft", "9"), "a solution of"),
    "problem that raises": (("--task", "raises.py"), "ZeroDivisionError"),
    "wrong solution": (("--task", "wrong.py"), "the verifier to reward the solution"),
    "negative sft": (("--task", "add", "--sft=-3"), "`solved.problems` to hold a valid value"),
    "unknown key": (("--task", "add", "rl.batchs=3"), "Did you mean `batches`"),
    "unknown stage": (("--task", "add", "sft.peak_lr=3"), "a known key"),
    "unknown key of the task": (("--task", "add", "task.heldout_shar=1"), "`heldout_share`"),
    "no room for a prompt": (("--task", "add", "rl.sampling.max_new_tokens=1024"), "for a prompt"),
    "response beyond a row": (("--task", "add", "rl.update.row_tokens=9"), "`update.row_tokens`"),
    "late prompt that is too long": (("--task", "late.py"), "the longest `late/1000`"),
    "late row that is too long": (("--task", "late.jsonl"), "leave room for an answer"),
}


@pytest.mark.parametrize(("arguments", "words"), FAULTS.values(), ids=FAULTS)
def test_fault_is_one_paragraph_before_any_training(
    command: Callable[..., str],
    checkpoint: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    row = json.dumps({"prompt": "a", "answer": "b"})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{row}\n")
    (tmp_path / "bad.jsonl").write_text(f"{row}\n{{\n")
    (tmp_path / "rows.py").write_text(JUDGED)
    (tmp_path / "raises.py").write_text("def problem(index, seed):\n    return {1 / 0}\n")
    late = LETTERS.replace('f"Say {letter}."', '"a " * (3000 if index == 1000 else 1)')
    (tmp_path / "late.py").write_text(late)
    rows = [{"prompt": "a " * (3000 if n == 150 else 1), "answer": "b"} for n in range(200)]
    lines = [json.dumps({**row, "verifier": "exact"}) for row in rows]
    (tmp_path / "late.jsonl").write_text("\n".join(lines))
    (tmp_path / "wrong.py").write_text(LETTERS.replace('"answer"', '"solution": "y", "answer"'))
    said = command(checkpoint, *arguments)
    assert said.startswith("2\n"), said
    assert words in said
    assert said.count("\nerror ") == 1
    assert "sft:" not in said
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_checkpoint_that_is_not_whole_is_named(
    command: Callable[..., str], checkpoint: Path, tmp_path: Path, name: str
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in checkpoint.iterdir():
        if path.name != name:
            (cut / path.name).symlink_to(path)
    said = command(cut, "--task", "copy")
    assert said.startswith("2\n")
    assert name.partition(".")[2] in said
    assert "in `cut`" in said.replace(str(tmp_path) + "/", "")
    assert "no such directory" in command("nowhere", "--task", "copy")


def test_foreign_template_is_refused(
    command: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "chat template" in command(".", "--task", "copy")


def test_names_and_files_become_tasks(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(JUDGED)
    (tmp_path / "maths.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    assert read_task("sort").config == ProceduralConfig(skill="sort", levels=(1, 2, 3))
    assert read_task("add", levels=(2,)).config == ProceduralConfig(skill="add", levels=(2,))
    assert read_task("gym:chain_sum").config == GymConfig(name="chain_sum")
    own = read_task(f"{tmp_path}/own.py").config
    assert isinstance(own, FunctionTaskConfig)
    assert own.target == f"{tmp_path}/own.py:problem"
    assert own.verifier == {"kind": "function", "target": f"{tmp_path}/own.py:reward"}
    named = read_task(f"{tmp_path}/own.py:reward", verifier="exact").config
    assert (named.target, named.verifier) == (f"{tmp_path}/own.py:reward", "exact")  # pyright: ignore[reportAttributeAccessIssue]
    maths = read_task(f"{tmp_path}/maths.jsonl").config
    assert isinstance(maths, FileConfig)
    assert maths.form == "gsm8k"
    spelled = read_task(f"{tmp_path}/maths.jsonl", verifier='{"kind": "number"}').config
    assert spelled.verifier == {"kind": "number"}  # pyright: ignore[reportAttributeAccessIssue]


def test_reward_of_a_file_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(JUDGED)
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a"}))
    spec = {"kind": "all", "parts": [{"kind": "function", "target": "own.py:reward"}]}
    named = [
        read_task("own.py"),
        read_task("rows.jsonl", verifier="own.py:reward"),
        read_task("rows.jsonl", verifier='{"kind": "function", "target": "own.py:reward"}'),
        read_task("rows.jsonl", verifier=json.dumps(spec)),
    ]
    wanted = {"kind": "function", "target": f"{tmp_path}/own.py:reward"}
    found: list[Any] = [task.config.verifier for task in named]  # pyright: ignore[reportAttributeAccessIssue]
    assert found == [wanted, wanted, wanted, {"kind": "all", "parts": [wanted]}]
    module = read_task("rows.jsonl", verifier="module:reward").config
    assert module.verifier == {"kind": "function", "target": "module:reward"}  # pyright: ignore[reportAttributeAccessIssue]


def config_of(stages: list[Stage]) -> RlConfig:
    config = stages[-1].config
    assert isinstance(config, RlConfig)
    return config


def test_thinking_and_lengths_follow_the_task(checkpoint: Path, tmp_path: Path) -> None:
    def config(task: OwnTask, **options) -> RlConfig:
        return config_of(rl_stages(checkpoint, task, tmp_path / "run", **options))

    reverse = read_task("reverse")
    assert config(reverse).sampling.thinks
    assert not config(reverse, thinking="off").sampling.thinks
    long = config(read_task("reverse", levels=(7,)))
    assert long.sampling.max_new_tokens > config(reverse).sampling.max_new_tokens
    (tmp_path / "own.py").write_text(LETTERS)
    own = config(read_task(f"{tmp_path}/own.py"))
    assert not own.sampling.thinks
    assert own.sampling.max_new_tokens == 16
    assert own.update.row_tokens >= own.sampling.max_new_tokens


def test_functions_of_a_file_are_tasks_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(LETTERS + LETTERS.replace("problem", "up") + LETTERS.replace("problem", "down"))
    names = [read_task(f"{path}{end}").name for end in ("", ":problem", ":up", ":down")]
    assert names == ["two", "two", "two-up", "two-down"]


def test_settings_of_the_task_reach_the_stages_that_follow(
    checkpoint: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Say {n}.", "answer": str(n), "verifier": "exact"} for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = read_task(f"{tmp_path}/rows.jsonl")

    def configs(*overrides: str, **options) -> dict[str, Any]:
        run = tmp_path / "run"
        stages = rl_stages(checkpoint, task, run, overrides=overrides, **options)
        return {stage.name: stage.config for stage in stages}

    assert configs("task.heldout_share=0")["rl"].evaluation.prompts == 0
    few = configs("task.most_heldout=3", sft=9)
    assert few["solved"].sources["rows"].heldout_problems == 3
    assert few["task"].most_heldout == 3
    seeded = configs("task.task.seed=5", "task.shown=1")
    assert seeded["rl"].sources[0].task.seed == 5
    assert seeded["task"].task.seed == 5
    with pytest.raises(ConfigError, match=r"raise `task\.heldout_share`"):
        configs("task.heldout_share=0", sft=9)


def test_task_knows_what_the_run_asks_of_it(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(LETTERS)
    task = read_task(f"{tmp_path}/own.py")

    def looked_at(*overrides: str, **options) -> Any:
        stages = rl_stages(checkpoint, task, tmp_path / "run", overrides=overrides, **options)
        assert stages[1].needs == {"start": "start"}
        return stages[1].config

    assert looked_at().trained == 40 * 16 * 2
    assert looked_at("rl.batches=3", "rl.sampling.batch_prompts=5").trained == 30
    assert looked_at("rl.batches=1", sft=400).trained == 400
    assert (looked_at().heldout, looked_at("rl.evaluation.prompts=200").heldout) == (64, 200)
    assert looked_at("rl.evaluation.prompts=9", sft=40).heldout == 32
    assert looked_at("task.trained=7").trained == 7
    limit = read_config(checkpoint).max_position_embeddings
    assert looked_at().longest_prompt_tokens == limit - 16
    narrow = looked_at("rl.update.row_tokens=99", "rl.sampling.max_new_tokens=20")
    assert narrow.longest_prompt_tokens == 80
    skill = rl_stages(checkpoint, read_task("add"), tmp_path / "run")[1].config
    assert isinstance(skill, OwnTaskConfig)
    assert skill.heldout == 0


def test_all_rows_of_a_file_decide_about_lengths(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Say it.", "answer": "ab " * (60 if n == 170 else 1)} for n in range(300)]
    lines = [json.dumps({**row, "verifier": "exact"}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    task = read_task(f"{tmp_path}/rows.jsonl")
    config = config_of(rl_stages(checkpoint, task, tmp_path / "run"))
    assert config.sampling.max_new_tokens >= 120


def test_prompts_without_room_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    line = json.dumps({"prompt": "word " * 3000, "answer": "b", "verifier": "exact"})
    (tmp_path / "long.jsonl").write_text(line)
    with pytest.raises(ConfigError, match="leave room for an answer"):
        rl_stages(checkpoint, read_task(f"{tmp_path}/long.jsonl"), tmp_path / "run")


def test_short_file_trains_without_examination(checkpoint: Path, tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a", "answer": "b", "verifier": "exact"})
    (tmp_path / "short.jsonl").write_text(f"{line}\n" * 3)
    task = read_task(f"{tmp_path}/short.jsonl")
    config = config_of(rl_stages(checkpoint, task, tmp_path / "run"))
    assert (config.sources[0].heldout, config.evaluation.prompts) == (None, 0)
    with pytest.raises(ConfigError, match="at least 5 rows"):
        rl_stages(checkpoint, task, tmp_path / "run", sft=3)


def test_checkpoint_written_anew_starts_the_run_again(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint")
    task = read_task("copy")
    first, again = (rl_stages(checkpoint, task, tmp_path / "run")[0].config for _ in range(2))
    assert first == again
    write_tiny(checkpoint, seed=1)
    assert rl_stages(checkpoint, task, tmp_path / "run")[0].config != first
    with pytest.raises(FivefoldError, match="no such directory"):
        rl_stages(tmp_path / "none", task, tmp_path / "run")


def test_a_changed_reward_file_starts_the_run_again(checkpoint: Path, tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a", "answer": "b"})
    (tmp_path / "rows.jsonl").write_text(f"{line}\n" * 3)

    def looked_at(reward: str):
        (tmp_path / "judge.py").write_text(f"def judge(answer, row):\n    return {reward}\n")
        task = read_task(f"{tmp_path}/rows.jsonl", verifier=f"{tmp_path}/judge.py:judge")
        stages = rl_stages(checkpoint, task, tmp_path / "run")
        return next(stage.config for stage in stages if stage.name == "task")

    assert looked_at("1.0") == looked_at("1.0")
    assert looked_at("1.0") != looked_at("0.5")
