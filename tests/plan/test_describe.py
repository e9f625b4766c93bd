import subprocess
import sys

import pytest
from rich.console import Console

from fivefold.models.preset import PRESETS, preset
from fivefold.plan.config import TrainingRun
from fivefold.plan.describe import describe_model, render
from fivefold.plan.flops import forward_flops


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_render_fits_100_columns_and_cuts_nothing(name: str) -> None:
    run = TrainingRun(total_tokens=28_500_000_000_000, batch_tokens=16_777_216, recompute="full")
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(render(describe_model(preset(name), name=name, run=run)))

    assert "…" not in capture.get()
    assert max(len(line.rstrip()) for line in capture.get().splitlines()) <= 100


def test_render_glm5_names_the_published_figures() -> None:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(render(describe_model(preset("glm5"), name="glm5")))

    for figure in ("744B", "40.8B", "753,864,139,008", "107 KiB", "202,752"):
        assert figure in capture.get()
    assert "Training run" not in capture.get()


def test_describe_run_multiplies_tokens_and_flops() -> None:
    run = TrainingRun(total_tokens=1_000_000, context_tokens=256)
    plan = describe_model(preset("nano"), run=run)

    assert plan.run is not None
    assert plan.run.total == pytest.approx(1e6 * plan.run.step.total)


def test_describe_crossover_is_where_sparse_starts_to_pay() -> None:
    config = preset("glm5")
    start = describe_model(config).sparse_pays_from
    assert start is not None

    for context, pays in ((start - 1, False), (start, True)):
        sparse = forward_flops(config, context, sparse=True).total
        assert (sparse < forward_flops(config, context).total) == pays


def test_describe_without_indexer_has_no_sparse_column() -> None:
    plan = describe_model(preset("glm45"))

    assert plan.sparse_pays_from is None
    assert all(cost.sparse is None for cost in plan.contexts)


def test_import_needs_no_torch() -> None:
    code = "import sys, fivefold.plan.describe; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
