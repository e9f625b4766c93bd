"""Starting a run: its directory, manifest, device, log; then its stages in order.

The only place where a device is chosen.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fivefold.artifact import write_json
from fivefold.config import config_to_json, hash_config
from fivefold.errors import ConfigError
from fivefold.log import logging_to, progress_on
from fivefold.manifest import describe_run
from fivefold.metrics import StageMetrics
from fivefold.recipes.catalogue import load_recipe
from fivefold.stage import (
    Selection,
    Stage,
    StageContext,
    claim_run_directory,
    run_stages,
    select_stages,
)


def run_recipe(
    recipe: str,
    overrides: Sequence[str],
    *,
    run: Path,
    selection: Selection,
    seed: int,
    device: str,
    threads: int | None,
    console: Console,
    command: Sequence[str],
    conclude: Callable[[Path], None],
) -> None:
    """Run the selected stages of a recipe in the directory `run`, resuming what is there.

    `conclude` is called with `run` at the end, however the stages end.

    Raises:
        FivefoldError: whatever a stage finds wrong with configs, files, network or disk.
    """
    run_pipeline(
        recipe,
        load_recipe(recipe, overrides),
        run=run,
        selection=selection,
        seed=seed,
        device=device,
        threads=threads,
        console=console,
        command=command,
        conclude=conclude,
    )


def run_pipeline(
    name: str,
    stages: Sequence[Stage],
    *,
    run: Path,
    selection: Selection,
    seed: int,
    device: str,
    threads: int | None,
    console: Console,
    command: Sequence[str],
    conclude: Callable[[Path], None],
) -> None:
    """Run stages that are not a recipe's, as `run_recipe` does; `name` claims the directory.

    Raises:
        FivefoldError: as `run_recipe`.
    """
    select_stages(stages, selection)
    device = resolve_device(device)
    threads = threads or os.cpu_count() or 1
    claim_run_directory(run, name)
    configs = {stage.name: config_to_json(stage.config) for stage in stages}
    hashes = json.dumps([(stage.name, hash_config(stage.config)) for stage in stages])
    manifest = describe_run(
        name,
        seed=seed,
        device=device,
        threads=threads,
        config_hash=hashlib.sha256(hashes.encode()).hexdigest()[:16],
        command=command,
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
        return StageContext(seed, device, threads, metrics, track)

    with logging_to(console, run / "log.txt"):
        try:
            run_stages(stages, run, selection, context_of)
        finally:
            conclude(run)


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
