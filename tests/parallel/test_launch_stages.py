"""The later gradient stages under torchrun, on every axis, against one process."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_launch import command, run_to_end

from fivefold.metrics import read_metrics
from fivefold.parallel.config import ParallelConfig

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = (
    "pretrain.model.max_position_embeddings=256",
    "pretrain.total_tokens=2000",
    "midtrain.total_tokens=1024",
    "dense_control.total_tokens=512",
    "adapt_dsa.index_topk=16",
    "adapt_dsa.cost_contexts=[]",
    *(f"adapt_dsa.{part}.total_tokens=1024" for part in ("warm_up", "sparse")),
    *(f"{stage}.validation_rows=8" for stage in ("midtrain", "dense_control")),
    *(f"adapt_dsa.{part}.validation_rows=8" for part in ("warm_up", "sparse")),
    *(f"{part}.sample_count=0" for part in ("midtrain", "adapt_dsa.sparse", "sft")),
    *(f"tasks.sources.{skill}.problems=24" for skill in ("reverse", "sort")),
    *(f"tasks.sources.{skill}.heldout_problems=4" for skill in ("reverse", "sort")),
    # Nine rows in steps of four: the last has one, for two data ranks.
    "sft.total_tokens=2304",
)
STAGES = ("midtrain", "dense_control", "adapt_dsa", "sft")
NAMES = ("train/loss_nats", "train/index_kl_nats", "train/answer_tokens", "validation/loss_nats")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stages") / "alone"
    run_to_end(command(run, *SHORT, until="sft"))
    return run


def read(run: Path, stage: str) -> dict[tuple[int, str], float]:
    records = [r for r in read_metrics(run / "metrics.jsonl") if r["stage"] == stage]
    return {(r["step"], name): r[name] for r in records for name in NAMES if name in r}


@pytest.mark.parametrize(
    "mesh",
    [
        {"pp": 2, "dp": 2},
        {"tp": 2},
        {"dp": 2, "ep": 2},
        {"cp": 2},
        {"pp": 2, "dp": 2, "ep": 2},
        {"pp": 2, "tp": 2},
        {"pp": 2, "cp": 2},
        {"fsdp": 2, "cp": 2},
        {"fsdp": 2, "tp": 2, "ep": 2},
        {"pp": 2, "fsdp": 2},
    ],
    ids=str,
)
def test_later_stages_train_and_export_as_one(
    finished: Path, tmp_path: Path, mesh: dict[str, int]
) -> None:
    run = tmp_path / "together"
    shutil.copytree(finished, run)
    for stage in STAGES:
        shutil.rmtree(run / stage)
    axes = [f"parallel.{axis}={size}" for axis, size in mesh.items()]
    ranks = ParallelConfig(**mesh).size  # pyright: ignore[reportArgumentType]
    run_to_end(command(run, *SHORT, *axes, ranks=ranks, until="sft"))
    for stage in STAGES:
        wanted, found = read(finished, stage), read(run, stage)
        assert len(wanted) > 2
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, rel=0.02), (stage, key)
        exported = [load_file(r / stage / "checkpoint/model.safetensors") for r in (finished, run)]
        assert exported[0].keys() == exported[1].keys()
        assert all(exported[1][name].shape == value.shape for name, value in exported[0].items())
        names = [sorted(p.name for p in (r / stage / "page").iterdir()) for r in (finished, run)]
        assert names[0] == names[1]
