"""What `fivefold data run`, `stats`, `inspect` and `train-classifier` do.

A run leaves in its directory: `run.json` (recipe, config, sources), `accounts.json`,
`summary.json`, `tiers.json` where there are tiers, the shards in `documents/`, blocks for the
report in `page/`, and a folder for each stage, which the next launch goes on from. `stats` and
`inspect` read those files alone.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fivefold.artifact import atomic_write, read_json, storage_errors, write_json
from fivefold.config import Config, apply_overrides, config_to_json
from fivefold.data.curate.account import Account, Poisoned, Sample, account_from_json
from fivefold.data.curate.config import (
    ClassifierTrainingConfig,
    CurateConfig,
    ExtractConfig,
    QualityClassifierConfig,
)
from fivefold.data.curate.page import curation_page, reason_rows
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError, RunDirectoryError
from fivefold.log import progress_on
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.dclm_baseline import Curated

_BYTES_PER_TOKEN = 4
"""Of English with a vocabulary of 32 thousand, about; only for what is shown."""

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
    curated = recipe.run(shards, config, out, progress_on(console))
    _publish(curated.documents, out / "documents")
    curation_page(out / "page", curated.accounts, curated.summary)
    show_stats(out, console)
    if curated.threshold is not None:
        console.out(f"the classifier's least score: {curated.threshold:.4g}", highlight=False)
    if curated.empty:
        few = ", ".join(curated.empty[:3]) + (", ..." if len(curated.empty) > 3 else "")
        console.out(f"without a page: {len(curated.empty):,} {recipe.unit}: {few}", highlight=False)
    console.out(f"documents: {out / 'documents'}", highlight=False)


def in_cache(config: Config, cache_dir: str) -> Config:
    """Return the config of a recipe that, if it downloads more than its sources, does so there."""
    if "cache_dir" not in type(config).model_fields:
        return config
    return config.model_copy(update={"cache_dir": cache_dir})


def _describe(shards: Sequence[Any], unit: str) -> str:
    names = list(dict.fromkeys(shard.source for shard in shards))
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    files = [shard.path for shard in shards if shard.path.is_file()]
    size = f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB, " if files else ""
    return f"{len(shards):,} {unit}, {size}from {shown}"


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


def read_run(out: Path) -> tuple[dict[str, Account], dict]:
    """Return the accounts and the summary of a finished run.

    Raises:
        MissingFileError: there is none.
        CorruptFileError: its files are not ours.
    """
    accounts, summary = read_json(out / "accounts.json"), read_json(out / "summary.json")
    if accounts is None or summary is None:
        raise MissingFileError(
            expected=f"a finished run of `fivefold data run` in `{out}`",
            found="no accounts.json and summary.json",
            fix=f"Run or finish it: `fivefold data run RECIPE --out {out}`",
        )
    try:
        return {name: account_from_json(one) for name, one in accounts.items()}, summary
    except (KeyError, TypeError) as error:
        raise CorruptFileError(
            expected=f"the accounts of a run in `{out / 'accounts.json'}`",
            found=str(error),
            fix="Run it again",
        ) from error


def show_stats(out: Path, console: Console) -> None:
    """Print the funnel, the reasons, languages and lengths of a run.

    Raises:
        MissingFileError: there is no finished run.
    """
    accounts, summary = read_run(out)
    funnel = Table("step", "in", "out", "kept, %", "characters out, M", title="Funnel")
    for name, account in accounts.items():
        share = 100 * account.documents_out / max(1, account.documents_in)
        cells = f"{account.documents_in:,}", f"{account.documents_out:,}", f"{share:.1f}"
        funnel.add_row(name, *cells, f"{account.characters_out / 1e6:.3f}")
    reasons = Table("step", "reason", "count", "share, %", title="Dropped and edited")
    for step, reason, count, share in reason_rows(accounts):
        reasons.add_row(step, reason, f"{count:,}", f"{share:.2f}")
    for table in (funnel, reasons):
        for column in table.columns[1 if table is funnel else 2 :]:
            column.justify = "right"
        console.print(table)
    if (tiers := read_json(out / "tiers.json")) is not None:
        console.print(_tier_table(tiers))
    for name in ("languages", "sources", "lengths"):
        shown = list(summary[name].items())[:12]
        line = ", ".join(f"{key}: {count:,}" for key, count in shown) or "none"
        console.out(f"{name}: {line}", highlight=False)
    console.out(
        f"{summary['documents']:,} documents, {summary['characters'] / 1e6:.3f} M characters",
        highlight=False,
    )


def _tier_table(tiers: Mapping[str, Mapping[str, float]]) -> Table:
    """Return documents and bytes of each tier, and what its epochs make of them."""
    table = Table("tier", "documents", "MB", "epochs", "MB seen", "M tokens seen", title="Tiers")
    rows = [(name, one["documents"], one["bytes"], one["epochs"]) for name, one in tiers.items()]
    for name, documents, size, epochs in rows:
        seen = size * epochs / 1e6
        cells = f"{documents:,.0f}", f"{size / 1e6:.3f}", f"{epochs:g}", f"{seen:.3f}"
        table.add_row(name, *cells, f"{seen / _BYTES_PER_TOKEN:.3f}")
    whole, seen = sum(row[2] for row in rows) / 1e6, sum(row[2] * row[3] for row in rows) / 1e6
    cells = f"{sum(row[1] for row in rows):,.0f}", f"{whole:.3f}", "", f"{seen:.3f}"
    table.add_row("all", *cells, f"{seen / _BYTES_PER_TOKEN:.3f}", style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def show_dropped(out: Path, reason: str, count: int, console: Console) -> None:
    """Print up to `count` samples of what was dropped or cut out for a reason, or a group of them.

    Raises:
        MissingFileError: there is no finished run.
        ConfigError: nothing was dropped for that reason.
    """
    accounts, _ = read_run(out)
    found, traces, total, known = _samples_of(accounts, reason)
    if not total:
        raise ConfigError(
            expected=f"a reason for which something was dropped in `{out}`",
            found=repr(reason),
            fix=f"Choose among {', '.join(sorted(known)) or 'none: nothing was dropped'}",
        )
    shown = found[:count]
    console.out(
        f"{total:,} for `{reason}`; {len(shown) or len(traces[:count])} shown", style="bold"
    )
    for name, sample in shown:
        console.print(Text.assemble((f"\n{name}", "bold"), f"  {sample['url']}  {sample['id']}"))
        opening, closing = ("", "") if console.is_terminal else ("[[", "]]")
        marked = f"{opening}{sample['marked']}{closing}" if sample["marked"] else ""
        console.print(
            Text.assemble(sample["before"], (marked, "black on yellow"), sample["after"]),
            soft_wrap=True,
        )
    for poisoned in traces[:count]:
        console.print(Text.assemble(("\nquarantined", "bold"), f"  {poisoned['url']}"))
        console.out(poisoned["trace"], highlight=False)


def _samples_of(
    accounts: Mapping[str, Account], reason: str
) -> tuple[list[tuple[str, Sample]], list[Poisoned], int, set[str]]:
    """Return samples and traces of a reason or of a group `GROUP.`, how many, and all reasons."""
    samples: list[tuple[str, Sample]] = []
    traces: list[Poisoned] = []
    total, known = 0, set()
    for account in accounts.values():
        counts = account.drops + account.edits
        known |= set(counts)
        for name in sorted(counts):
            if name == reason or name.startswith(f"{reason}."):
                total += counts[name]
                samples += [(name, sample) for sample in account.samples.get(name, [])]
        if account.quarantined:
            known.add("quarantined")
        if reason == "quarantined":
            traces += account.quarantined
            total += len(account.quarantined)
    return samples, traces, total, known


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
