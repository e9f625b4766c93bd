"""The nano recipe end to end on the fixture text, shortened to seconds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fivefold.metrics import read_metrics
from fivefold.models.convert import read_checkpoint, released_tensors
from fivefold.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GOLDEN = Path(__file__).parent.parent / "golden" / "nano_pretrain.json"
SHORT = (
    "corpus.profile=fixture",
    "corpus.heldout_bytes=12000",
    "tokenizer.tokenizer.vocab_size=600",
    "tokens.contexts=[64]",
    "pretrain.model.vocab_size=600",
    "pretrain.model.max_position_embeddings=128",
    "pretrain.context_tokens=64",
    "pretrain.total_tokens=12000",
    "pretrain.batch_rows=8",
    "pretrain.batch_rows_start=4",
    "pretrain.microbatch_rows=4",
    "pretrain.validation_steps=12",
    "pretrain.validation_rows=16",
    "pretrain.sample_count=2",
    "pretrain.sample_tokens=8",
    "pretrain.checkpoint_steps=3",
)


def command(run: Path, *extra: str) -> list[str]:
    options = ["--run-dir", str(run), "--threads", "1", "--device", "cpu"]
    return [sys.executable, "-m", "fivefold", "run", "nano", *SHORT, *extra, *options]


def run_to_end(arguments: Sequence[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    run = tmp_path_factory.mktemp("e2e") / "nano"
    run_to_end(command(run))
    return run


def losses(run: Path) -> list[float]:
    records = read_metrics(run / "metrics.jsonl")
    return [r["train/loss_nats"] for r in records if "train/loss_nats" in r]


def test_run_trains_exports_and_reports(finished: Path) -> None:
    curve = losses(finished)
    assert sum(curve[-3:]) / 3 < sum(curve[:3]) / 3 - 1.0
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "validation/final_bits_per_byte" in page or "bits" in page
    names = {path.name for path in (finished / "pretrain" / "checkpoint").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["recipe"] == "nano"
    assert manifest["threads"] == 1


def test_checkpoint_opens_in_transformers_with_our_logits_at_full_context(finished: Path) -> None:
    checkpoint = finished / "pretrain" / "checkpoint"
    peer = AutoModelForCausalLM.from_pretrained(checkpoint)
    ours = read_checkpoint(checkpoint)
    ids = torch.randint(0, 600, (1, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = peer(ids).logits - ours.logits(ours(ids).hidden_BTD)
    assert gap.abs().max() < 1e-4
    text = "To be, or not to be"
    theirs = AutoTokenizer.from_pretrained(checkpoint)(text, add_special_tokens=False)["input_ids"]
    assert theirs == load_tokenizer(checkpoint).encode(text)


def test_generate_and_chat_print_text(finished: Path) -> None:
    checkpoint = str(finished / "pretrain" / "checkpoint")
    base = [sys.executable, "-m", "fivefold"]
    options = ["--max-new-tokens", "8", "--device", "cpu"]
    arguments = [*base, "generate", checkpoint, "--prompt", "The king", *options]
    printed = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert printed.stdout.startswith("The king")
    assert len(printed.stdout.strip()) > len("The king")
    talked = subprocess.run(
        [*base, "chat", checkpoint, *options],
        input="The king\n\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "continues your text" in talked.stdout


def test_second_run_skips_every_stage(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_text()
    story = run_to_end(command(finished))
    assert story.count("finished before, skipped") == 4
    assert (finished / "metrics.jsonl").read_text() == before


def test_golden_losses_of_the_fixture_text(finished: Path) -> None:
    """Bitwise on one machine is the resume test's; across machines matrix libraries differ."""
    golden = json.loads(GOLDEN.read_text())
    assert losses(finished) == pytest.approx(golden["loss_nats"], rel=1e-3)


def test_killed_run_resumes_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    """Kill -9 in the middle of training, three times at different steps."""
    run = tmp_path / "nano"
    run.mkdir()
    for name in ("manifest.json", "config.json"):
        shutil.copy(finished / name, run / name)
    for stage in ("corpus", "tokenizer", "tokens"):
        shutil.copytree(finished / stage, run / stage)
    for kill_after_step in (1, 8, 17):
        process = subprocess.Popen(
            command(run), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            records = read_metrics(run / "metrics.jsonl")
            if any(r["step"] > kill_after_step and "train/loss_nats" in r for r in records):
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait()
        assert not (run / "pretrain" / "finished.json").exists(), "killed too late to test anything"
    run_to_end(command(run))
    assert losses(run) == losses(finished)
    ours, expected = (
        dict(released_tensors(read_checkpoint(r / "pretrain" / "checkpoint")))
        for r in (run, finished)
    )
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    pages = [(r / "pretrain" / "page" / "10_samples.json").read_text() for r in (run, finished)]
    assert pages[0] == pages[1]


def test_changed_config_keeps_the_earlier_result(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "nano"
    shutil.copytree(finished, run)
    run_to_end(command(run, "pretrain.peak_lr=5e-3"))
    assert (run / "previous" / "pretrain-1" / "checkpoint" / "config.json").is_file()
    assert losses(run) != losses(finished)
    assert len(losses(run)) == len(losses(finished))
