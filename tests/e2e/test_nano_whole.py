"""The whole nano recipe as a user runs it: what sparse attention must hold. Ten minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fivefold.metrics import read_metrics


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(3600)
def test_indexers_find_the_mass_and_sparse_costs_a_percent_at_most(tmp_path: Path) -> None:
    run = tmp_path / "nano"
    command = [sys.executable, "-m", "fivefold", "run", "nano", "--run-dir", str(run)]
    subprocess.run(command, capture_output=True, check=True, timeout=3600)
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
