"""Starting a run: its directory, manifest, device, log; then its stages in order.

The only place where a device is chosen. Under torchrun every process comes here: the first owns the
directory, the record and the console, the others take part in the stages that are distributed.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fivefold.artifact import write_json
from fivefold.config import apply_overrides, config_to_json, hash_config
from fivefold.errors import ConfigError
from fivefold.log import logging_to, progress_on
from fivefold.manifest import describe_run
from fivefold.metrics import StageMetrics
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.launch import failures_told, joined, started_here
from fivefold.recipes.catalogue import load_recipe
from fivefold.report.page import write_report
from fivefold.stage import (
    ProgressTask,
    Selection,
    Stage,
    StageContext,
    claim_run_directory,
    run_stages,
    select_stages,
)


@dataclass(frozen=True)
class Launch:
    """Where and how a run runs, whatever its stages are."""

    run: Path
    """Its directory; what is there is resumed."""
    selection: Selection
    """Which stages."""
    seed: int
    device: str
    """auto, cpu or cuda."""
    threads: int | None
    """CPU threads; None: all cores, shared by the processes of this machine."""
    console: Console


def run_recipe(recipe: str, overrides: Sequence[str], launch: Launch) -> None:
    """Run the selected stages of a recipe, and write the report however they end.

    Overrides `parallel.AXIS=N` shape the mesh of the processes that torchrun started.

    Raises:
        FivefoldError: whatever a stage finds wrong with configs, files, network or disk.
    """
    parallel, own = split_overrides(overrides)
    run_pipeline(recipe, load_recipe(recipe, own), launch, parallel)


def split_overrides(overrides: Sequence[str]) -> tuple[ParallelConfig, list[str]]:
    """Return the mesh that the overrides `parallel.*` ask for, and the other overrides.

    Raises:
        ConfigError: an unknown axis, or axes that do not fit each other.
    """
    asked = [override for override in overrides if override.startswith("parallel.")]
    own = [override for override in overrides if override not in asked]
    return apply_overrides({"parallel": ParallelConfig()}, asked)["parallel"], own


def run_pipeline(
    name: str, stages: Sequence[Stage], launch: Launch, parallel: ParallelConfig | None = None
) -> None:
    """Run stages that are not a recipe's, as `run_recipe` does; `name` claims the directory.

    Raises:
        FivefoldError: as `run_recipe`.
    """
    run, selection, console = launch.run, launch.selection, launch.console
    select_stages(stages, selection)
    device = resolve_device(launch.device)
    with joined(parallel or ParallelConfig(), device) as ranks:
        threads = launch.threads or max((os.cpu_count() or 1) // started_here(), 1)
        if not ranks.is_first:
            follower = StageContext(launch.seed, device, threads, _Unrecorded(), _unseen, ranks)
            with failures_told(ranks):
                run_stages(stages, run, selection, lambda _: follower)
            return
        with failures_told(ranks):
            claim_run_directory(run, name)
            configs = {stage.name: config_to_json(stage.config) for stage in stages}
            hashes = json.dumps([(stage.name, hash_config(stage.config)) for stage in stages])
            manifest = describe_run(
                name,
                seed=launch.seed,
                device=device,
                threads=threads,
                config_hash=hashlib.sha256(hashes.encode()).hexdigest()[:16],
                command=sys.argv,
            )
            write_json(run / "manifest.json", manifest)
            write_json(run / "config.json", configs)
        track = progress_on(console)

        def context_of(stage: Stage) -> StageContext:
            metrics = StageMetrics(
                run / "metrics.jsonl",
                stage.name,
                show=lambda line: console.print(line, highlight=False, markup=False),
            )
            return StageContext(launch.seed, device, threads, metrics, track, ranks)

        with logging_to(console, run / "log.txt"), failures_told(ranks):
            try:
                run_stages(stages, run, selection, context_of)
            finally:
                console.out(f"report: {write_report(run)}", highlight=False)


class _Unrecorded(StageMetrics):
    """The numbers of a rank that does not own the run directory: the first has the same."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), "")

    def write(self, step: int, values: Mapping[str, float], *, shown: str | None = None) -> None:
        """Drop the record."""

    def forget_after(self, step: int) -> None:
        """Keep nothing, forget nothing."""

    def write_once(self, step: int, values: Mapping[str, float], *, shown: str) -> None:
        """Drop the record."""


class _UnseenTask:
    def advance(self, amount: float = 1, **shown: str) -> None:
        """Show nothing."""


@contextmanager
def _unseen(description: str, total: float, unit: str, /) -> Iterator[ProgressTask]:
    """Track progress on a rank without a console."""
    yield _UnseenTask()


def resolve_device(device: str) -> str:
    """Return `cuda` or `cpu` for `auto`, `cuda` or `cpu`.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ConfigError(
            expected="a CUDA device, as `--device cuda` asks",
            found="none that torch can use",
            fix="Run with `--device cpu`, or install a CUDA build of torch",
        )
    return "cpu"
