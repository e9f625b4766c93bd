"""The whole nano recipe as a user runs it: what sparse attention and post-training must hold.

Twenty minutes.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from fivefold.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "nano"
    command = [sys.executable, "-m", "fivefold", "run", "nano", "--run-dir", str(run)]
    subprocess.run(command, capture_output=True, check=True, timeout=7200)
    return run


def test_indexers_find_the_mass_and_sparse_costs_a_percent_at_most(run: Path) -> None:
    records = list(read_metrics(run / "metrics.jsonl"))
    losses = [r["step"] for r in records if r["stage"] == "adapt_dsa" and "train/loss_nats" in r]
    probes = [r for r in records if "index/recall_layer0" in r]
    # The last look of the warm-up, before the first sparse step.
    warmed = [probe for probe in probes if probe["step"] < min(losses)][-1]
    for layer in range(4):
        recall, best, recent = (
            warmed[f"index/{name}_layer{layer}"] for name in ("recall", "best", "recent")
        )
        assert recall >= 0.95 * best
        assert recall > recent
    page = run / "adapt_dsa" / "page"
    comparison = json.loads((page / "05_sparse_against_dense.json").read_text())
    sparse, dense = (row[2] for row in comparison["rows"])
    assert sparse <= 1.01 * dense
    assert (page / "06_attention_cost.json").is_file()


def test_each_expert_gains_its_skill_and_the_student_has_both(run: Path) -> None:
    """Gains of 25 points, students within 5 of their teachers, up to two standard errors."""
    before_a, after_a = examined(run, "rl_a", "reverse")
    before_b, after_b = examined(run, "rl_b", "sort")
    assert 0.15 < before_a[0] < 0.7
    assert gain(before_a, after_a) >= 0.25 - 2 * error(before_a, after_a)
    assert gain(before_b, after_b) >= 0.25 - 2 * error(before_b, after_b)
    for teacher, skill in ((after_a, "reverse"), (after_b, "sort")):
        _, student = examined(run, "distill", skill)
        assert gain(teacher, student) >= -0.05 - 2 * error(teacher, student)


def examined(run: Path, stage: str, skill: str) -> list[tuple[float, float]]:
    """Return a skill's pass rate with its standard error before and after a stage."""
    name = f"rl/eval_pass_rate_{skill}"
    found = [r for r in read_metrics(run / "metrics.jsonl") if r["stage"] == stage and name in r]
    return [(r[name], r[f"rl/eval_pass_error_{skill}"]) for r in (found[0], found[-1])]


def gain(before: tuple[float, float], after: tuple[float, float]) -> float:
    return after[0] - before[0]


def error(before: tuple[float, float], after: tuple[float, float]) -> float:
    return math.hypot(before[1], after[1])
