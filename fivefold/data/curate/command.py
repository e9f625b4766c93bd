"""What `fivefold data run` and `train-classifier` do.

A run leaves in its directory: `run.json` (recipe, config, sources), `accounts.json`,
`summary.json`, `benchmarks.json` (what was looked for), `tiers.json` where there are tiers, the
shards in `documents/`, blocks for the report in `page/`, and a folder for each stage, which the
next launch goes on from.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fivefold.artifact import atomic_write, read_json, storage_errors, write_json
from fivefold.config import Config, apply_overrides, config_to_json
from fivefold.data.curate.config import (
    ClassifierTrainingConfig,
    CurateConfig,
    EngineConfig,
    ExtractConfig,
    QualityClassifierConfig,
)
from fivefold.data.curate.page import benchmark_block, curation_page
from fivefold.data.curate.run import BENCHMARKS_FILE
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.data.curate.show import show_stats, top_reason
from fivefold.errors import ConfigError, RunDirectoryError
from fivefold.log import ProgressLine, progress_on
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.dclm_baseline import Curated

_SINGULAR = {"files": "file", "repositories": "repository"}

DEFAULT_SOURCES = (
    "anarchism",
    "debian-reference-en",
    "libreoffice-help-en",
    "postgresql-doc",
    "python-doc",
    "sqlite-doc",
)
"""What a run takes when it is given no sources: English HTML of the catalogue, 4,900 pages."""


@dataclass(frozen=True)
class Recipe:
    """What `fivefold data run` runs under a name."""

    config: Callable[[], Config]
    """Makes the config before any override; it has `workers`."""
    run: Callable[[Sequence[Any], Any, Path, Track | None], "Curated"]
    """Runs shards with a config in a directory."""
    find: Callable[[Sequence[str], str], Sequence[Any]] = find_shards
    """Finds the shards behind sources, each with `path` and `source`, given the cache directory."""
    default_sources: Sequence[str] = DEFAULT_SOURCES
    """What a run takes when it is given no sources."""
    unit: str = "files"
    """What a shard is."""


def _run_dclm_baseline(
    shards: Sequence[Shard], config: CurateConfig, out: Path, track: Track | None
) -> "Curated":
    from fivefold.data.curate.dclm_baseline import run_dclm_baseline

    return run_dclm_baseline(shards, config, out, track)


DCLM_BASELINE = Recipe(CurateConfig, _run_dclm_baseline)


def recipe_config(
    recipe: str, recipes: Mapping[str, Recipe], overrides: Sequence[str], workers: int
) -> Config:
    """Return the config of one of `recipes` with `key.path=value` applied.

    Raises:
        ConfigError: an unknown recipe, key, or value.
    """
    if recipe not in recipes:
        raise ConfigError(
            expected="the name of a curation recipe",
            found=repr(recipe),
            fix=f"Choose one of {', '.join(recipes)}",
        )
    changes = [f"workers={workers}", *overrides]
    configs = apply_overrides(
        {recipe: recipes[recipe].config()}, [f"{recipe}.{one}" for one in changes]
    )
    return configs[recipe]


def run_curation(
    name: str,
    recipe: Recipe,
    sources: Sequence[str],
    config: Config,
    out: Path,
    console: Console,
    cache_dir: str = "~/.cache/fivefold",
) -> None:
    """Run a recipe into `out` and print what it did.

    Raises:
        RunDirectoryError: `out` holds foreign files.
        FivefoldError: as the recipe and the sources do.
    """
    _claim(out, name)
    config = in_cache(config, cache_dir)
    shards = recipe.find(sources or recipe.default_sources, cache_dir)
    console.out(f"{name}: {_describe(shards, recipe.unit)}", highlight=False)
    write_json(
        out / "run.json",
        {"recipe": name, "sources": list(sources), "config": config_to_json(config)},
    )
    curated = recipe.run(shards, config, out, _stages_on(console))
    _publish(curated.documents, out / "documents")
    tiers = read_json(out / "tiers.json") or {}
    curation_page(out / "page", curated.accounts, curated.summary, tiers)
    benchmark_block(out / "page", read_json(out / BENCHMARKS_FILE))
    show_stats(out, console)
    if curated.threshold is not None:
        console.out(f"the classifier's least score: {curated.threshold:.4g}", highlight=False)
    if curated.empty:
        few = ", ".join(curated.empty[:3]) + (", ..." if len(curated.empty) > 3 else "")
        console.out(f"without a page: {len(curated.empty):,} {recipe.unit}: {few}", highlight=False)
    console.out(f"documents: {out / 'documents'}", highlight=False)
    if reason := top_reason(curated.accounts):
        console.out(
            f"to see what went: fivefold data inspect {out} --dropped-by {reason}", highlight=False
        )


def _stages_on(console: Console) -> Track:
    """Return progress that, off a terminal, is a line for each stage that took a second or more."""
    track = progress_on(console)

    @contextmanager
    def told(description: str, total: float, unit: str) -> Iterator[ProgressLine]:
        began = time.monotonic()
        with track(description, total, unit) as line:
            yield line
        seconds = time.monotonic() - began
        if seconds >= 1 and not console.is_terminal:
            counted = unit.removesuffix("s") if total == 1 else unit
            console.out(f"{description}: {total:,g} {counted} in {seconds:,.0f} s", highlight=False)

    return told


def in_cache(config: Config, cache_dir: str) -> Config:
    """Return the config of a recipe that has all downloads beside its sources there."""
    changes: dict[str, object] = {}
    if "cache_dir" in type(config).model_fields:
        changes["cache_dir"] = cache_dir
    if isinstance(config, EngineConfig) and config.benchmarks:
        changes["benchmarks"] = config.benchmarks.model_copy(update={"cache_dir": cache_dir})
    return config.model_copy(update=changes)


def _describe(shards: Sequence[Any], unit: str) -> str:
    names = list(dict.fromkeys(shard.source for shard in shards))
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    files = [shard.path for shard in shards if shard.path.is_file()]
    size = f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB, " if files else ""
    counted = unit if len(shards) != 1 else _SINGULAR.get(unit, unit)
    return f"{len(shards):,} {counted}, {size}from {shown}"


def _claim(out: Path, recipe: str) -> None:
    owner = (read_json(out / "run.json") or {}).get("recipe")
    if owner == recipe:
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(
            expected=f"an empty directory or an earlier run of recipe `{recipe}` at `{out}`",
            found=f"a run of recipe `{owner}`" if owner else "files that no run of Fivefold made",
            fix="Choose another directory with `--out`",
        )
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)


def _publish(documents: Sequence[Path], folder: Path) -> None:
    """Show the last stage's files under a name that does not change, without a second copy."""
    with atomic_write(folder) as partial:
        partial.mkdir()
        for file in documents:
            try:
                os.link(file, partial / file.name)
            except OSError:
                # A file system without hard links; where the disk is full, copying says so.
                shutil.copyfile(file, partial / file.name)


def run_training(
    positive: Sequence[str],
    negative: Sequence[str],
    out: Path,
    overrides: Sequence[str],
    console: Console,
    cache_dir: str = "~/.cache/fivefold",
) -> None:
    """Train a quality classifier into `out` and print how well it tells the two apart.

    Raises:
        ConfigError: too few documents, or an unknown key.
        FivefoldError: as the sources do.
    """
    from fivefold.data.curate.classifier import train_classifier
    from fivefold.data.curate.raw_page import read_texts

    name = "classifier"
    configs = apply_overrides(
        {name: ClassifierTrainingConfig()}, [f"{name}.{one}" for one in overrides]
    )
    track: Track = progress_on(console)
    good, other = find_shards(positive, cache_dir), find_shards(negative, cache_dir)
    extract = ExtractConfig()
    with track("train", 1, "models"):
        trained = train_classifier(
            read_texts(good, extract), read_texts(other, extract), out, configs[name]
        )
    facts = asdict(trained)
    console.out(
        f"trained on {facts['positives']:,} positive and {facts['negatives']:,} negative "
        f"documents; AUC {trained.auc:.4f} on {trained.heldout:,} others",
        highlight=False,
    )
    shown = ", ".join(f"{share}%: {trained.quantiles[share]:.4f}" for share in (10, 50, 90, 99))
    console.out(f"scores below which so many negatives lie: {shown}", highlight=False)
    console.out(f"model: {out / 'model.bin'}", highlight=False)


def with_classifier(config: Config, model: Path, keep_share: float) -> CurateConfig:
    """Return the config with the classifier at `model`, keeping the best share.

    Raises:
        ConfigError: a recipe that has no such step.
    """
    if not isinstance(config, CurateConfig):
        raise ConfigError(
            expected="a recipe that ends with a quality classifier",
            found=f"`--classifier` with a {type(config).__name__}",
            fix="Leave it out, and select the documents first with `dclm_baseline`",
        )
    classifier = QualityClassifierConfig(model=str(model), keep_share=keep_share)
    return config.model_copy(update={"classifier": classifier})
