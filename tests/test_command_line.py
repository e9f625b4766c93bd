"""The command line as a user meets it: fast without torch, and one paragraph for each mistake."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.__main__ import COMMANDS, main
from fivefold.artifact import write_json

ROOT = Path(__file__).resolve().parent.parent

# Runs a command and tells, after its output, whether torch was imported and what CPU time it took.
PROBE = """
import resource, sys
from fivefold.__main__ import main
sys.argv = ["fivefold", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
used = resource.getrusage(resource.RUSAGE_SELF)
print("\\nPROBE", "torch" in sys.modules, used.ru_utime + used.ru_stime)
"""


# What the packages cost that every command imports: a third of a second on a core of 2023.
PACKAGES = """
import resource, numpy, pydantic, rich.console, tyro
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


def packages_seconds() -> float:
    """Return the CPU seconds of a fresh process that imports those packages alone."""
    command = [sys.executable, "-c", PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def probe(*arguments: str) -> tuple[str, bool, float]:
    """Return what a fresh process prints, whether it imports torch, and its CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    output, _, tail = done.stdout.rpartition("PROBE ")
    has_torch, seconds = tail.split()
    return output, has_torch == "True", float(seconds)


@pytest.fixture
def fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """Run a command that must end with exit code 2, and return its one paragraph."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["fivefold", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        errors = [line for line in captured.err.splitlines() if line.startswith("error ")]
        assert len(errors) == 1, captured.err
        assert re.match(r"error Expected .+; found .+\. .+\.$", errors[0]), errors[0]
        assert captured.err.rstrip().endswith(errors[0])
        return errors[0].removeprefix("error ")

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    from fivefold.models.convert import write_checkpoint
    from fivefold.models.preset import preset
    from fivefold.models.transformer import Transformer

    write_checkpoint(Transformer(preset("nano", num_hidden_layers=1)), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(("--help",), "generate"), (("plan", "nano"), "parameters"), (("plan", "glm5"), "744")],
)
def test_help_and_plan_answer_at_once_without_torch(arguments: tuple[str, ...], shown: str) -> None:
    output, has_torch, seconds = probe(*arguments)
    # CPU time does not wait for other processes, but a busy machine's caches slow it too.
    seconds = min([seconds, *(probe(*arguments)[2] for _ in range(2) if seconds >= 1)])
    assert shown in output
    assert not has_torch
    # A slow core is allowed as many times what the packages alone cost.
    assert seconds < 1 or seconds < 3.5 * packages_seconds()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fivefold", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    first_words = (COMMANDS[command].__doc__ or "").split()[:3]
    assert " ".join(first_words) in capsys.readouterr().out


def test_unknown_recipe_names_the_known_ones(fail: Callable[..., str]) -> None:
    assert "Choose one of nano, mini, small, glm5" in fail("run", "nanno")
    assert "mini" in fail("plan", "nanno")


def test_unknown_key_names_the_nearest(fail: Callable[..., str]) -> None:
    assert "Did you mean `total_tokens`" in fail("run", "nano", "pretrain.total_tokns=2e6")
    assert "Did you mean `pretrain`" in fail("plan", "nano", "pretran.total_tokens=2e6")


def test_unknown_stage_names_the_known_ones(fail: Callable[..., str], tmp_path: Path) -> None:
    assert "corpus, tokenizer, tokens, pretrain" in fail("run", "nano", "--until", "pretrian")
    assert list(tmp_path.iterdir()) == []


def test_markup_in_a_value_is_shown_as_it_is(fail: Callable[..., str]) -> None:
    assert "'[/red][bold]'" in fail("plan", "nano", "pretrain.batch_rows=[/red][bold]")


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (("num_attention_heads=3", "num_key_value_heads=2"), "2 and 3"),
        (("qk_rope_head_dim=7",), "7"),
        (("num_experts_per_tok=17",), "17"),
        (("hidden_size=0",), "0"),
    ],
)
def test_impossible_shape_is_refused(
    fail: Callable[..., str], overrides: tuple[str, ...], found: str
) -> None:
    values = [f"pretrain.model.{override}" for override in overrides]
    assert f"found {found}" in fail("plan", "nano", *values)


def test_impossible_shape_stops_a_run_before_anything_is_made(
    fail: Callable[..., str], tmp_path: Path
) -> None:
    assert "found 7" in fail("run", "nano", "pretrain.model.qk_rope_head_dim=7")
    assert list(tmp_path.iterdir()) == []


def test_missing_checkpoint_is_named(fail: Callable[..., str]) -> None:
    assert "`nowhere`" in fail("generate", "nowhere", "--prompt", "Hello")
    assert "`nowhere`" in fail("chat", "nowhere")


def test_truncated_weights_are_named(fail: Callable[..., str], checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    assert "model.safetensors" in fail("generate", checkpoint, "--prompt", "Hello")


@pytest.mark.parametrize("content", ["", "{", "no JSON"])
def test_damaged_config_json_is_refused(
    fail: Callable[..., str], checkpoint: Path, content: str
) -> None:
    (checkpoint / "config.json").write_text(content)
    assert "config.json" in fail("generate", checkpoint, "--prompt", "Hello")


def test_report_of_no_run_is_refused(fail: Callable[..., str]) -> None:
    assert "`nowhere`" in fail("report", "nowhere")


def test_foreign_run_directory_is_left_untouched(fail: Callable[..., str], tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "metrics.jsonl").write_text("mine\n")
    assert "--run-dir" in fail("run", "nano", "--run-dir", foreign, "--device", "cpu")
    assert [path.name for path in foreign.iterdir()] == ["metrics.jsonl"]


def test_run_directory_of_another_recipe_is_refused(
    fail: Callable[..., str], tmp_path: Path
) -> None:
    write_json(tmp_path / "run" / "manifest.json", {"recipe": "small"})
    assert "`small`" in fail("run", "nano", "--run-dir", tmp_path / "run", "--device", "cpu")


def test_file_in_place_of_the_run_directory_is_refused(
    fail: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("mine")
    assert "--run-dir" in fail("run", "nano", "--run-dir", tmp_path / "run", "--device", "cpu")


def test_missing_corpus_file_is_named(fail: Callable[..., str]) -> None:
    profile = ("corpus.profile=files", 'corpus.files=["/nonexistent"]')
    assert "`/nonexistent`" in fail("run", "nano", *profile, "--device", "cpu")


def test_files_and_another_profile_are_refused(fail: Callable[..., str]) -> None:
    assert "corpus.files" in fail("plan", "nano", "corpus.profile=pip", 'corpus.files=["a.txt"]')
    assert "corpus.files" in fail("plan", "nano", "corpus.profile=files")


def test_no_package_manager_and_no_cache_names_the_ways_out(
    fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    overrides = ("corpus.profile=debian", f"corpus.cache_dir={tmp_path / 'cache'}")
    assert "corpus.profile=fixture" in fail("run", "nano", *overrides, "--device", "cpu")


def test_no_network_and_no_cache_names_the_ways_out(
    fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    for name, value in {**unreachable, "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    overrides = ("corpus.profile=pip", f"corpus.cache_dir={tmp_path / 'cache'}")
    assert "Check the network" in fail("run", "nano", *overrides, "--device", "cpu")


def test_only_before_its_inputs_names_the_way(fail: Callable[..., str]) -> None:
    assert "--until pretrain" in fail("run", "nano", "--only", "pretrain", "--device", "cpu")


def test_missing_cuda_is_told(fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "`--device cpu`" in fail("run", "nano", "--device", "cuda")


def test_path_with_brackets_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run [mine]"
    command = ["fivefold", "run", "nano", "corpus.profile=fixture", "--run-dir", str(run)]
    monkeypatch.setattr(sys, "argv", [*command, "--until", "corpus", "--device", "cpu"])
    main()
    assert "[mine]" in capsys.readouterr().err


def test_run_makes_records_and_a_report_and_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["fivefold", "run", "nano", "corpus.profile=fixture", "--run-dir", str(run)]
    monkeypatch.setattr(sys, "argv", [*command, "--until", "corpus", "--device", "cpu"])
    main()
    assert "corpus: finished" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} >= {
        "config.json",
        "corpus",
        "log.txt",
        "manifest.json",
        "metrics.jsonl",
        "report.html",
    }
    assert json.loads((run / "config.json").read_text())["corpus"]["profile"] == "fixture"
    main()
    shown = capsys.readouterr().err
    assert "finished before, skipped" in shown
    assert "report.html" in shown


def test_flags_take_no_value(fail: Callable[..., str]) -> None:
    """`--fresh` stands alone: what is refused here is the recipe, not the flag."""
    assert "recipe" in fail("run", "nowhere", "--fresh")
