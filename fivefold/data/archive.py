"""Members of package archives (`.deb`, sdists, wheels), read without unpacking them.

Thousands of small files cost more in the file system than their extraction does, so members come
straight out of the archive. A `.deb` is an ar archive whose `data.tar.*` holds the files. Members
are given in the order of the hash of their names: whoever stops early has read a fair sample, not
the first directory.
"""

import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import xxhash
import zstandard

from fivefold.errors import CorruptFileError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60
_AR_END = b"`\n"
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)


def read_members(
    archive: Path, pattern: str, max_bytes: int | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files whose whole name matches `pattern`, in hashed order.

    A member that ends in `.gz` is decompressed and loses the suffix. Of a longer content only the
    first `max_bytes` are decompressed.

    Raises:
        CorruptFileError: the archive is cut, altered or of an unknown kind.
    """
    wanted = re.compile(pattern)
    if archive.suffix in (".whl", ".zip"):
        yield from _read_zip(archive, wanted, max_bytes)
    else:
        yield from _read_tar(archive, wanted, max_bytes)


def check_archive(archive: Path) -> None:
    """Read an archive's table of contents to its end.

    Raises:
        CorruptFileError: the archive is cut, altered or of an unknown kind.
    """
    for _ in read_members(archive, r"(?!)"):
        pass


def _read_zip(
    archive: Path, wanted: re.Pattern[str], max_bytes: int | None
) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(archive) as file:
            for name in _hashed_order([n for n in file.namelist() if wanted.fullmatch(n)]):
                with file.open(name) as member:
                    yield _unzipped(name, member, max_bytes)
    except _DAMAGE as error:
        raise corrupt_archive(archive, str(error)) from error


def _read_tar(
    archive: Path, wanted: re.Pattern[str], max_bytes: int | None
) -> Iterator[tuple[str, bytes]]:
    content = _tar_bytes(archive)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as file:
            everything = file.getmembers()
            if any(member.offset_data + member.size > len(content) for member in everything):
                raise corrupt_archive(archive, "an end inside a member")
            members = {
                member.name.removeprefix("./"): member
                for member in everything
                if member.isfile() and wanted.fullmatch(member.name.removeprefix("./"))
            }
            for name in _hashed_order(list(members)):
                begin = members[name].offset_data
                member = io.BytesIO(content[begin : begin + members[name].size])
                yield _unzipped(name, member, max_bytes)
    except _DAMAGE as error:
        raise corrupt_archive(archive, str(error)) from error


def _tar_bytes(archive: Path) -> bytes:
    """Return the uncompressed tar inside an archive; it is held in memory."""
    content = archive.read_bytes()
    name = archive.name
    if content.startswith(_AR_MAGIC):
        members = read_ar(content, archive)
        names = [name for name in members if name.startswith("data.tar")]
        if len(names) != 1:
            raise corrupt_archive(archive, f"the members {', '.join(members)}")
        name, content = names[0], members[names[0]]
    try:
        if name.endswith(".xz"):
            return lzma.decompress(content)
        if name.endswith((".gz", ".tgz")):
            return gzip.decompress(content)
        if name.endswith(".zst"):
            return zstandard.ZstdDecompressor().stream_reader(content).read()
        if name.endswith(".tar"):
            return content
    except (*_DAMAGE, zstandard.ZstdError) as error:
        raise corrupt_archive(archive, str(error)) from error
    raise corrupt_archive(archive, f"an archive of unknown kind, {name}")


def read_ar(content: bytes, archive: Path) -> dict[str, bytes]:
    """Return the members of an ar archive by name.

    A header is 60 bytes: name [16], time [12], owner [6], group [6], mode [8], size [10], end [2];
    members begin at even offsets.

    Raises:
        CorruptFileError: the archive ends inside a member, or a header is not one.
    """
    members = {}
    offset = len(_AR_MAGIC)
    while offset < len(content):
        header = content[offset : offset + _AR_HEADER_BYTES]
        digits = header[48:58].strip()
        if len(header) < _AR_HEADER_BYTES or header[58:] != _AR_END or not digits.isdigit():
            raise corrupt_archive(archive, f"no member header at byte {offset:,}")
        begin = offset + _AR_HEADER_BYTES
        end = begin + int(digits)
        if end > len(content):
            raise corrupt_archive(archive, f"an end at byte {len(content):,} of {end:,}")
        members[header[:16].decode("ascii", errors="replace").strip().rstrip("/")] = content[
            begin:end
        ]
        offset = end + end % 2
    return members


def _unzipped(name: str, member: IO[bytes], max_bytes: int | None) -> tuple[str, bytes]:
    size = -1 if max_bytes is None else max_bytes
    if not name.endswith(".gz"):
        return name, member.read(size)
    with gzip.open(member) as content:
        return name.removesuffix(".gz"), content.read(size)


def _hashed_order(names: list[str]) -> list[str]:
    return sorted(
        names,
        key=lambda name: (xxhash.xxh3_64_intdigest(name.encode(errors="surrogatepass")), name),
    )


def corrupt_archive(archive: Path, found: str) -> CorruptFileError:
    """Return the error for an archive that cannot be read."""
    return CorruptFileError(
        expected=f"a whole package archive in `{archive}`",
        found=found,
        fix="Delete the file; `fivefold data get` downloads it again",
    )
