"""Kill -9 at random moments of `rl` and `distill`, as stages of a recipe: nothing of it shows.

Another process runs the stages, as a user's command does, and dies without a word. What goes on
afterwards has to end with the same curve and the same checkpoint, to the last bit, as a run that
nobody disturbed. `test_nano` does so for the stages before.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_learning import Given, track

from fivefold.envs.config import FunctionTaskConfig
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.models.convert import read_checkpoint
from fivefold.rl.loop_config import (
    DistillConfig,
    EvaluationConfig,
    RecordConfig,
    RlConfig,
    SamplingConfig,
    SourceConfig,
    TeacherConfig,
    UpdateConfig,
)
from fivefold.rl.preset import icepop
from fivefold.rl.stages import DistillStage, RlStage
from fivefold.serve.config import EngineConfig
from fivefold.stage import ProgressTask, Selection, Stage, StageContext, run_stages
from fivefold.train.optimizer_config import OptimizerConfig

BATCHES = 4
TASKS = """
def row(asked, index):
    verifier = {"kind": "format", "most_content_characters": 7}
    return {"prompt": f"{asked} {index % 10}", "verifier": verifier}


def up(index, seed):
    return row("up", index)


def down(index, seed):
    return row("down", index)
"""
CLOCKS = ("time_seconds", "rl/sample_seconds", "rl/train_seconds")


def recipe(place: Path) -> list[Stage]:
    """A random model, RL by the length of its answers, and distillation from what came out."""
    tasks = [FunctionTaskConfig(target=f"{place}:{skill}") for skill in ("up", "down")]
    common: dict[str, Any] = {
        "batches": BATCHES,
        "update": UpdateConfig(
            row_tokens=64,
            lr=3e-3,
            optimizer=OptimizerConfig(ns_dtype="float32", weight_decay=0.0),
        ),
        "evaluation": EvaluationConfig(prompts=2, every_batches=3),
        "record": RecordConfig(checkpoint_batches=2, dumps_kept=2),
        "engine": EngineConfig(pool_tokens=2048, step_tokens=256),
    }
    sampling = SamplingConfig(
        batch_prompts=6, max_new_tokens=6, thinks=False, refill_rounds=1, no_signal_limit=BATCHES
    )
    rl = RlConfig(
        sources=tuple(SourceConfig(task=task) for task in tasks),
        algorithm=icepop(4),
        sampling=sampling,
        **common,
    )
    distill = DistillConfig(
        sources=tuple(
            TeacherConfig(task=task, teacher=teacher)
            for task, teacher in zip(tasks, ("teacher", "given"), strict=True)
        ),
        sampling=sampling.model_copy(update={"batch_prompts": 12}),
        **common,
    )
    start = {"tokenizer": "given"}
    teachers = {"teacher": "rl", "given": "given"}
    return [
        Given("given", SamplingConfig()),
        RlStage("rl", rl, {"start": "given", **start}),
        DistillStage("distill", distill, {"start": "given", **teachers, **start}),
    ]


class Death(NamedTuple):
    """When a process ends itself with SIGKILL."""

    stage: str
    batch: int
    """After so many batches of the process."""
    share: float
    """And this share of the time that the last of them took: anywhere within the next one."""


class FatalBar:
    """Progress that starts the clock."""

    def __init__(self, death: Death) -> None:
        self.death, self.batches, self.begin = death, 0, time.perf_counter()

    def advance(self, amount: float = 1, **shown: str) -> None:
        seconds = time.perf_counter() - self.begin
        self.batches, self.begin = self.batches + bool(shown), time.perf_counter()
        if shown and self.batches == self.death.batch:
            threading.Thread(target=self.die, args=(self.death.share * seconds,)).start()

    def die(self, seconds: float) -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)


def run_recipe(run: Path, tasks: Path, death: Death | None = None) -> None:
    torch.set_num_threads(1)
    run.mkdir(exist_ok=True)

    @contextmanager
    def fatal(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
        assert death is not None
        yield FatalBar(death)

    def context_of(stage: Stage) -> StageContext:
        metrics = StageMetrics(run / "metrics.jsonl", stage.name)
        is_last = death is not None and stage.name == death.stage
        return StageContext(0, "cpu", 1, metrics, fatal if is_last else track)

    run_stages(recipe(tasks), run, Selection(), context_of)


def kill_within(run: Path, tasks: Path, death: Death) -> None:
    """Run in another process, which dies."""
    script = (
        "import sys; sys.path[:0] = sys.argv[3:4]; import test_killed as t; from pathlib import"
    )
    script += " Path; t.run_recipe(Path(sys.argv[1]), Path(sys.argv[2]), t.Death("
    script += "sys.argv[4], int(sys.argv[5]), float(sys.argv[6])))"
    arguments = [sys.executable, "-c", script, run, tasks, Path(__file__).parent, *death]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(each) for each in arguments], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, f"the process ended before {death}"
    assert not (run / death.stage / "finished.json").exists(), f"the stage ended before {death}"


def records(run: Path) -> list[dict[str, Any]]:
    found = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in found]


def assert_nothing_shows(moments: Sequence[tuple[str, int]], root: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    draw = np.random.default_rng(seed)
    deaths = [Death(stage, batch, float(draw.uniform(0, 0.9))) for stage, batch in moments]
    print(f"dies at {deaths}")
    tasks = root / "tasks.py"
    tasks.write_text(TASKS)
    run_recipe(root / "whole", tasks)
    for death in deaths:
        kill_within(root / "cut", tasks, death)
    run_recipe(root / "cut", tasks)
    assert records(root / "cut") == records(root / "whole")
    for stage in ("rl", "distill"):
        trained = [r for r in records(root / "whole") if r["stage"] == stage and "rl/loss" in r]
        assert len(trained) == BATCHES
        ours, theirs, before = (
            read_checkpoint(run / stage / "checkpoint").state_dict()
            for run, stage in (
                (root / "cut", stage),
                (root / "whole", stage),
                (root / "whole", "given"),
            )
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert not torch.equal(theirs["lm_head.weight"], before["lm_head.weight"])


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_killed_post_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """One kill in each stage, within a random batch but the first."""
    draw = np.random.default_rng()
    moments = [(stage, int(draw.integers(1, BATCHES))) for stage in ("rl", "distill")]
    assert_nothing_shows(moments, tmp_path)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_post_training_killed_again_and_again_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Kills that follow each other in one stage, with and without a saved state between them."""
    moments = [("rl", 1), ("rl", 1), ("rl", 3), ("rl", 1), ("distill", 1), ("distill", 3)]
    assert_nothing_shows(moments, tmp_path)
