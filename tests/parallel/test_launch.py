"""The command under torchrun: the training of one process, and clean ends when a rank fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from team import Team

from fivefold.artifact import read_json
from fivefold.errors import ConfigError
from fivefold.metrics import read_metrics
from fivefold.parallel import collectives
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.failure import RankError, tell_failures
from fivefold.parallel.launch import joined
from fivefold.parallel.mesh import Mesh, World
from fivefold.recipes.launch import split_overrides

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

PHASES = json.dumps(
    [
        {
            "context_tokens": 64,
            "share": 1,
            "batch_rows": 4,
            "microbatch_rows": 4,
            "rope_theta": 2e4,
            "mixture": {},
        }
    ],
    separators=(",", ":"),
)
SHORT = (
    "corpus.profile=fixture",
    "corpus.heldout_bytes=12000",
    "tokenizer.tokenizer.vocab_size=600",
    "tokens.contexts=[64]",
    "tokens.long_contexts=[]",
    "tokens.planted.contexts=[]",
    "pretrain.model.vocab_size=600",
    "pretrain.model.max_position_embeddings=64",
    "pretrain.context_tokens=64",
    "pretrain.total_tokens=8000",
    "pretrain.batch_rows=8",
    "pretrain.batch_rows_start=4",
    "pretrain.microbatch_rows=4",
    "pretrain.validation_steps=12",
    "pretrain.validation_rows=8",
    "pretrain.sample_count=0",
    "pretrain.checkpoint_steps=2",
    f"midtrain.phases={PHASES}",
    f"dense_control.phases={PHASES}",
    "adapt_dsa.context_tokens=64",
    "adapt_dsa.mixture={}",
)
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def command(run: Path, *extra: str, ranks: int = 1, until: str = "pretrain") -> list[str]:
    start = [sys.executable] if ranks == 1 else [*TOGETHER, str(ranks)]
    options = ["--until", until, "--run-dir", str(run), "--threads", "1", "--device", "cpu"]
    return [*start, "-m", "fivefold", "run", "nano", *SHORT, *extra, *options]


def run_to_end(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def losses(run: Path) -> dict[int, float]:
    records = read_metrics(run / "metrics.jsonl")
    return {r["step"]: r["train/loss_nats"] for r in records if "train/loss_nats" in r}


def final_loss(run: Path) -> float:
    records = read_metrics(run / "metrics.jsonl")
    found = (r["validation/final_loss_nats"] for r in records if "validation/final_loss_nats" in r)
    return next(found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, which no test changes."""
    run = tmp_path_factory.mktemp("launch") / "alone"
    run_to_end(command(run))
    return run


@pytest.fixture
def prepared(finished: Path, tmp_path: Path) -> Path:
    """The same with its data stages alone."""
    run = tmp_path / "together"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "pretrain")
    (run / "metrics.jsonl").unlink()
    return run


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(("parallel.dp=2",), marks=pytest.mark.slow),
        ("parallel.pp=2", "parallel.dp=2"),
        pytest.param(("parallel.tp=2",), marks=pytest.mark.slow),
        pytest.param(("parallel.dp=2", "parallel.ep=2"), marks=pytest.mark.slow),
        pytest.param(("parallel.cp=2",), marks=pytest.mark.slow),
        pytest.param(("parallel.fsdp=2", "parallel.tp=2"), marks=pytest.mark.slow),
        pytest.param(
            ("parallel.pp=2", "parallel.schedule=zb_v", "parallel.chunks=2"), marks=pytest.mark.slow
        ),
    ],
    ids=["dp2", "pp2_dp2", "tp2", "dp2_ep2", "cp2", "fsdp2_tp2", "pp2_zb_v"],
)
def test_ranks_train_and_export_as_one(
    finished: Path, prepared: Path, mesh: tuple[str, ...]
) -> None:
    ranks = split_overrides(mesh)[0].size
    told = run_to_end(command(prepared, *mesh, ranks=ranks))
    # One rank speaks.
    assert told.count("pretrain: finished") == 1
    wanted, found = losses(finished), losses(prepared)
    assert found.keys() == wanted.keys()
    # fp32 sums in another order; routing amplifies the difference from some step on.
    for step in sorted(wanted)[:8]:
        assert found[step] == pytest.approx(wanted[step], rel=1e-5)
    last = max(wanted)
    assert found[last] == pytest.approx(wanted[last], rel=0.02)
    names = [
        sorted(path.relative_to(run).as_posix() for path in (run / "pretrain").rglob("*.json"))
        for run in (finished, prepared)
    ]
    assert names[0] == names[1]
    markers = [read_json(run / "pretrain" / "finished.json") or {} for run in (finished, prepared)]
    # The mesh is no part of the stage's identity.
    assert markers[0]["config_hash"] == markers[1]["config_hash"]
    assert final_loss(prepared) == pytest.approx(final_loss(finished), rel=0.02)
    exported = load_file(prepared / "pretrain" / "checkpoint" / "model.safetensors")
    shapes = {name: value.shape for name, value in exported.items()}
    alone = load_file(finished / "pretrain" / "checkpoint" / "model.safetensors")
    assert shapes == {name: value.shape for name, value in alone.items()}


def rank_process(parent: int, rank: int) -> int:
    """Return the process id of a rank that torchrun started."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            status = (directory / "status").read_text(encoding="utf-8")
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and f"RANK={rank}".encode() in environment:
            return int(directory.name)
    raise AssertionError(f"rank {rank} does not run")


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Start a command that is killed at the end of the test, if it still runs."""
    running: list[subprocess.Popen[str]] = []

    def begin(arguments: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if max(losses(run), default=0) >= step:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached")


def test_killed_rank_is_named_and_the_run_goes_on(
    finished: Path, prepared: Path, start: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    process = start(command(prepared, "parallel.dp=2", ranks=2))
    wait_for_step(prepared, 6, process)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    told = process.communicate(timeout=90)[1]
    assert process.returncode != 0
    flat = " ".join(told.split())
    assert "no answer from rank 1 in stage `pretrain`, after step" in flat
    assert "rank 1" in (prepared / "log.txt").read_text(encoding="utf-8")
    reached = max(losses(prepared))
    # On another mesh: one process.
    told = run_to_end(command(prepared))
    begin = next(line for line in told.splitlines() if "goes on at step" in line)
    step = int(begin.split("goes on at step")[1].split(",")[0])
    assert reached - 4 <= step <= reached
    wanted, found = losses(finished), losses(prepared)
    assert found.keys() == wanted.keys()
    assert found[max(found)] == pytest.approx(wanted[max(found)], rel=0.02)


@pytest.mark.slow
def test_hanging_rank_is_named(
    prepared: Path, start: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    limit = "parallel.timeout_seconds=10"
    process = start(command(prepared, "parallel.dp=2", limit, ranks=2))
    wait_for_step(prepared, 4, process)
    os.kill(rank_process(process.pid, 1), signal.SIGSTOP)
    told = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    flat = " ".join(told.split())
    assert "no answer from rank 1 in stage `pretrain`, after step" in flat
    assert "(limit 10 s)" in flat


def fail_in_a_step(world: World) -> str:
    mesh = Mesh(ParallelConfig(dp=world.size, timeout_seconds=4), world)
    group = mesh.data
    mesh.place = "in stage `x`, after step 3"
    try:
        with tell_failures(mesh):
            if world.rank == 1:
                raise ValueError("planted")
            collectives.all_reduce(torch.ones(1), group)
    except (RankError, ValueError) as error:
        return str(error)
    return "nothing"


def test_first_cause_reaches_the_other_ranks() -> None:
    team = Team(2)
    try:
        first, second = team.run(fail_in_a_step)
    finally:
        team.stop()
    assert second == "planted"
    assert "rank 1 failed in stage `x`, after step 3: ValueError: planted" in first


def test_overrides_of_the_mesh_are_not_the_recipes() -> None:
    mesh, own = split_overrides(["parallel.dp=2", "pretrain.total_tokens=5", "parallel.zero=2"])
    assert mesh == ParallelConfig(dp=2, zero=2)
    assert own == ["pretrain.total_tokens=5"]
    with pytest.raises(ConfigError, match="Did you mean `fsdp`"):
        split_overrides(["parallel.fsp=2"])


def test_a_mesh_without_torchrun_says_how_to_start() -> None:
    with (
        pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"),
        joined(ParallelConfig(dp=2), "cpu"),
    ):
        pass


def test_axes_that_no_training_spreads_over_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = pytest.raises(ConfigError, match=r"`zero` 1 or 2, or `fsdp`, with `tp=2`")
    with refused, joined(ParallelConfig(dp=2, tp=2, zero=0), "cpu"):
        pass
