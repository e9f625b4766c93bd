"""What goes into code curation: repositories, each with a way to read its files.

A repository is a git repository (its HEAD; nothing is checked out), an installed Python package
(what its installer recorded), a directory of sources, or rows of files (JSON lines as archives give
them, with what their metadata says). One of them is a shard, the smallest share of work but for
rows, whose shard is a file.

Every file comes with the record that its source keeps of it (git's blob id, the wheel's digest, the
row's), for `metadata` to check. What is not read comes too, with the reason, so that the accounts
hold it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackagePath, PathDistribution
from pathlib import Path, PurePosixPath
from typing import Literal

import xxhash

from fivefold.data.code.config import AdmitConfig
from fivefold.data.code.git import REGULAR, GitRepository, is_repository
from fivefold.data.code.metadata import Record, State, check, realign
from fivefold.data.document import Document, read_good_rows
from fivefold.data.source import PYTHON_STDLIB, stdlib_directory
from fivefold.errors import ConfigError, MissingFileError, StorageError

Kind = Literal["git", "package", "directory", "rows"]
_NOT_OURS = ("__pycache__", "site-packages", "dist-packages")
_ROWS = (".jsonl", ".jsonl.zst", ".jsonl.gz")


@dataclass(frozen=True)
class CodeShard:
    """One repository, or a file of rows of many."""

    path: Path
    source: str
    """Name of the repository; rows may name their own."""
    kind: Kind


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A file as it was found."""

    repository: str
    path: str
    content: bytes
    state: State = "unchecked"
    """Whether the content is the one that its record names."""
    language: str = ""
    """As metadata declare it; empty if they do not."""
    licence: str = ""
    refusal: str = ""
    """Why it was not read, `admit.REASON`; empty if it was."""


def find_repositories(sources: Sequence[str | Path]) -> list[CodeShard]:
    """Return the shards behind paths, `package:NAME`s and `python-stdlib`, ordered by name.

    A directory that holds git repositories or installed packages stands for all of them.

    Raises:
        MissingFileError: no such path, or no such package is installed.
        ConfigError: a file that holds no rows, or a directory without files.
    """
    shards: dict[Path, CodeShard] = {}
    for given in sources:
        found = list(_find(str(given)))
        if not found:
            raise ConfigError(
                expected=f"source files in `{given}`",
                found="none",
                fix="Choose another directory",
            )
        shards.update((shard.path, shard) for shard in found)
    return _unique_names(sorted(shards.values(), key=lambda one: (one.source, str(one.path))))


def _find(given: str) -> Iterator[CodeShard]:
    path = Path(given).expanduser()
    if given.startswith("package:"):
        yield _installed(given.removeprefix("package:"))
    elif given == PYTHON_STDLIB:
        yield CodeShard(stdlib_directory(), given, "directory")
    elif path.is_file():
        if not path.name.endswith(_ROWS):
            raise ConfigError(
                expected=f"a directory, or a file that ends in {', '.join(_ROWS)}",
                found=f"`{given}`",
                fix="Give the repository's root, or rows of files as JSON lines",
            )
        yield CodeShard(path.resolve(), path.name.split(".")[0], "rows")
    elif not path.is_dir():
        raise MissingFileError(
            expected=f"a path, `package:NAME` or `python-stdlib` instead of `{given}`",
            found="no such file or directory",
            fix="Correct it",
        )
    else:
        yield from _find_in(path.resolve())


def _find_in(path: Path) -> Iterator[CodeShard]:
    if is_repository(path):
        yield CodeShard(path, _repository_name(path), "git")
        return
    packages = sorted(path.glob("*.dist-info"))
    inner = [child for child in sorted(path.iterdir()) if child.is_dir() and is_repository(child)]
    rows = [child for child in sorted(path.iterdir()) if child.name.endswith(_ROWS)]
    if packages:
        yield from (CodeShard(one, _package_name(one), "package") for one in packages)
    elif inner or rows:
        yield from (CodeShard(one, _repository_name(one), "git") for one in inner)
        yield from (CodeShard(one, one.name.split(".")[0], "rows") for one in rows)
    elif any(path.iterdir()):
        yield CodeShard(path, path.name, "directory")


def _repository_name(path: Path) -> str:
    name = path.name.removesuffix(".git")
    return name if name not in ("", "repo") else path.parent.name


def _package_name(folder: Path) -> str:
    return folder.name.removesuffix(".dist-info").rsplit("-", 1)[0].lower().replace("_", "-")


def _installed(name: str) -> CodeShard:
    import sysconfig

    root = Path(sysconfig.get_path("purelib"))
    wanted = re.sub(r"[-_.]+", "-", name).lower()
    for folder in sorted(root.glob("*.dist-info")):
        if _package_name(folder) == wanted:
            return CodeShard(folder, wanted, "package")
    raise MissingFileError(
        expected=f"an installed package `{name}`",
        found=f"none in `{root}`",
        fix="Install it, or correct the name",
    )


def _unique_names(shards: list[CodeShard]) -> list[CodeShard]:
    taken: dict[str, int] = {}
    unique = []
    for shard in shards:
        taken[shard.source] = taken.get(shard.source, 0) + 1
        number = taken[shard.source]
        name = shard.source if number == 1 else f"{shard.source}-{number}"
        unique.append(CodeShard(shard.path, name, shard.kind))
    return unique


def digest_repository(shard: CodeShard, config: AdmitConfig) -> str:
    """Return what identifies a shard's content: a commit, or the bytes of all files that are read.

    An installer's record is not enough: it stays as it was when somebody changes a file. Of files
    that the config refuses the size counts.

    Raises:
        CorruptFileError: a git repository without a commit.
        StorageError: a file cannot be read.
    """
    if shard.kind == "git":
        return GitRepository(shard.path).head()
    digest = xxhash.xxh3_128()
    if shard.kind == "rows":
        digest.update(_read(shard.path))
        return digest.hexdigest()
    root = shard.path if shard.kind == "directory" else shard.path.parent
    names = _walk(root) if shard.kind == "directory" else _recorded(shard.path)
    record = shard.path / "RECORD"
    if shard.kind == "package" and record.is_file():
        digest.update(_read(record))
    for name in names:
        file = root / name
        size = file.stat().st_size if file.is_file() else -1
        digest.update(f"{name}\0{size}\0".encode(errors="surrogatepass"))
        if size > 0 and not refusal_of(name, size, config):
            digest.update(xxhash.xxh3_128_digest(_read(file)))
    return digest.hexdigest()


def read_repository(shard: CodeShard, config: AdmitConfig) -> Iterator[CodeFile]:
    """Yield the files of a shard; those that the config refuses come without content.

    Raises:
        CorruptFileError: a repository or a file of rows is damaged.
        StorageError: a file cannot be read.
    """
    if shard.kind == "git":
        yield from _read_git(shard, config)
    elif shard.kind == "package":
        yield from _read_package(shard, config)
    elif shard.kind == "directory":
        licence = _licence(shard.path)
        for name in _walk(shard.path):
            file = shard.path / name
            refusal = refusal_of(name, file.stat().st_size, config)
            content = b"" if refusal else _read(file)
            yield CodeFile(shard.source, name, content, licence=licence, refusal=refusal)
    else:
        yield from _read_rows(shard, config)


def refusal_of(path: str, size_bytes: int, config: AdmitConfig) -> str:
    """Return why a file is not read, by its path and size; empty if it is."""
    *folders, name = PurePosixPath(path.lower()).parts
    if any(folder in config.refused_folders for folder in folders):
        return "admit.folder"
    if re.fullmatch(config.refused_files, name):
        return "admit.name"
    if size_bytes > config.max_file_bytes:
        return "admit.too_large"
    return "" if size_bytes else "admit.empty"


def _read_git(shard: CodeShard, config: AdmitConfig) -> Iterator[CodeFile]:
    repository = GitRepository(shard.path)
    with repository.contents() as contents:
        for file in repository.tree(repository.head()):
            refusal = refusal_of(file.path, file.size_bytes, config)
            if file.mode not in REGULAR:
                refusal = "admit.no_file"
            content = b"" if refusal else contents.read(file.blob)
            record = Record(file.blob, "git", file.size_bytes)
            state = "unchecked" if refusal else check(record, content)
            yield CodeFile(shard.source, file.path, content, state, refusal=refusal)


def _read_package(shard: CodeShard, config: AdmitConfig) -> Iterator[CodeFile]:
    """Read what an installer recorded, without its own notes and compiled copies."""
    root, facts = shard.path.parent, PathDistribution(shard.path).metadata
    licence = next((facts[key] for key in ("License-Expression", "License") if key in facts), "")
    for name, file in _recorded(shard.path).items():
        digest = file.hash.value if file.hash and file.hash.mode == "sha256" else ""
        record = Record(digest, "sha256-base64" if digest else "", file.size)
        place = root / name
        if not place.is_file():
            yield CodeFile(shard.source, name, b"", refusal="admit.missing")
            continue
        refusal = refusal_of(name, place.stat().st_size, config)
        content = b"" if refusal else _read(place)
        state = "unchecked" if refusal else check(record, content)
        terms = licence.split("\n")[0][:80]
        yield CodeFile(shard.source, name, content, state, licence=terms, refusal=refusal)


def _recorded(package: Path) -> dict[str, PackagePath]:
    """Return the files that an installer recorded, by path, in order; not its own notes."""
    files = {file.as_posix(): file for file in PathDistribution(package).files or ()}
    return {
        name: files[name]
        for name in sorted(files)
        if not name.startswith(("..", "/", package.name)) and not name.endswith(".pyc")
    }


def _read_rows(shard: CodeShard, config: AdmitConfig) -> Iterator[CodeFile]:
    rows = (
        ((number, row), _row_record(row), row.text.encode() if row else b"")
        for number, found in read_good_rows(shard.path)
        for row in [found if isinstance(found, Document) else None]
    )
    for (number, row), content, state in realign(rows):
        if row is None:
            name = f"{shard.path.name}#{number}"
            yield CodeFile(shard.source, name, b"", refusal="admit.bad_row")
            continue
        meta = row.meta
        path = str(meta.get("path") or row.url)
        refusal = refusal_of(path, len(content), config)
        yield CodeFile(
            repository=str(meta.get("repository") or row.source),
            path=path,
            content=content,
            state=state,
            language=row.lang,
            licence=str(meta.get("licence") or ""),
            refusal=refusal,
        )


def _row_record(row: Document | None) -> Record:
    if row is None:
        return Record()
    for kind in ("sha256", "sha1", "git"):
        if row.meta.get(kind):
            return Record(str(row.meta[kind]), kind)
    size = row.meta.get("size")
    return Record(size_bytes=int(size)) if isinstance(size, int) else Record()


def _walk(root: Path) -> list[str]:
    """Return the paths of all files below a directory, in order.

    Hidden folders, compiled copies and installed packages are no part of it.
    """
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name for name in folders if not name.startswith(".") and name not in _NOT_OURS
        ]
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in files]
    return sorted(names)


def _licence(root: Path) -> str:
    found = sorted(path.name for path in root.glob("LICEN[CS]E*"))
    return f"see {found[0]}" if found else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(
            expected=f"to be able to read `{path}`",
            found=str(error.strerror),
            fix="Correct the file's permissions, or leave it out of the sources",
        ) from error
