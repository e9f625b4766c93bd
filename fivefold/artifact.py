"""Files and directories that are whole or not there.

Everything that a stage leaves behind is written here: beside its place first, moved onto it at the
end, so that a kill, a fault or a full disk never leaves half of it under its name. Storage faults
of the operating system become errors that say what to do.

The digest of an output covers every file but `page/` (plots), `state/` (resume state), the markers,
and what a kill left half-written (`*.partial`).
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from fivefold.errors import StorageError

_STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` at success and disappears at failure.

    Raises:
        StorageError: the disk is full or read-only.
    """
    partial = path.with_name(path.name + ".partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        try:
            yield partial
            if path.is_dir():
                remove(path)
            partial.replace(path)
        except BaseException:
            remove(partial)
            raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's storage faults into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_FAULTS:
            raise
        # A stage also reads: the fault may lie at a file of the user's, far from what it writes.
        place = Path(error.filename) if isinstance(error.filename, str) else path
        ours = path.absolute(), path.with_name(path.name + ".partial").absolute()
        is_ours = any(place.absolute().is_relative_to(own) for own in ours)
        raise StorageError(
            expected=f"to be able to {f'write `{path}`' if is_ours else f'open `{place}`'}",
            found=f"{error.strerror}, {_free_bytes(place) / 2**20:,.0f} MiB free",
            fix="Free space, correct the permissions, or choose another place with `--run-dir`; a "
            "finished stage is kept and the same command goes on from there",
        ) from error


def _free_bytes(path: Path) -> int:
    places = (path, *path.absolute().parents)
    return shutil.disk_usage(next(place for place in places if os.access(place, os.F_OK))).free


def remove(path: Path) -> None:
    """Delete a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a kill leaves either the whole file or none."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a marker; None if it is missing, cut or another kind of file."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def digest_directory(root: Path) -> str:
    """Return 16 hex digits over the names and bytes of the artifacts below `root`."""
    whole = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        relative = path.relative_to(root)
        is_outside = relative.parts[0] in ("page", "state", "started.json", "finished.json")
        if is_outside or any(part.endswith(".partial") for part in relative.parts):
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, xxhash.xxh3_128)
        whole.update(f"{relative.as_posix()}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()[:16]
