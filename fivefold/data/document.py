"""Documents and their file: JSON lines in zstd, one document a line.

The row is `{id, text, source, url, lang, meta}`. Files are written whole or not at all, with a
checksum in the frame; those of users may also be plain or gzipped. Surprise: zstandard's stream
reader takes a truncated frame for the end of the file, so the reader here follows the frames itself
and reports a cut as such.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
import zstandard

from fivefold.artifact import atomic_write
from fivefold.errors import CorruptFileError

_BLOCK_BYTES = 1 << 20


class LargeRowError(CorruptFileError):
    """A row of more bytes than the reader was told to take."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    id: str
    """32 hex digits, from source and url."""
    text: str
    source: str
    """Name of the source in the catalogue or of the user's file."""
    url: str = ""
    """Address, or path inside an archive."""
    lang: str = ""
    """Language code, empty if unknown."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that is JSON."""


def document_id(source: str, url: str) -> str:
    """Return the id of the document at this place: xxh3-128 of source and url.

    Names of files that are no UTF-8 come as lone surrogates; they count by their bytes.
    """
    return xxhash.xxh3_128_hexdigest(f"{source}\0{url}".encode("utf-8", errors="surrogatepass"))


def has_places(meta: Mapping[str, Any]) -> bool:
    """Return whether `meta` holds places in the text, such as those of special tokens.

    A text that has them is kept or dropped whole: a cut would shift them.
    """
    return any(meta.get(name) for name in ("marks", "files"))


def document_to_line(document: Document) -> bytes:
    """Return the JSON line of a document, newline included."""
    row = {
        "id": document.id,
        "text": document.text,
        "source": document.source,
        "url": document.url,
        "lang": document.lang,
        "meta": dict(document.meta),
    }
    return json.dumps(row, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"


@contextmanager
def document_writer(path: Path) -> Iterator[Callable[[Document], None]]:
    """Open a `.jsonl.zst` for writing; yield a function that appends one document.

    The file appears under `path` only when the block ends without an error.

    Raises:
        StorageError: the disk is full or read-only.
    """
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with (
        atomic_write(path) as partial,
        partial.open("wb") as raw,
        compressor.stream_writer(raw) as stream,
    ):
        yield lambda document: _write_all(stream, document_to_line(document))


def _write_all(stream: zstandard.ZstdCompressionWriter, line: bytes) -> None:
    stream.write(line)


def read_documents(path: Path, source: str | None = None) -> Iterator[Document]:
    """Read JSON lines, also compressed; only `text` must be there, so that users' files open too.

    `source` names rows that do not name their source.

    Raises:
        CorruptFileError: the file is cut or altered, or a line is not a document.
    """
    for _, row in read_rows(path, source):
        if isinstance(row, CorruptFileError):
            raise row
        yield row


def read_rows(
    path: Path, source: str | None = None, max_bytes: int | None = None
) -> Iterator[tuple[int, Document | CorruptFileError]]:
    """Yield the number and the document of each line, or what is wrong with that line.

    A line of more than `max_bytes` is a LargeRowError, and never held in memory.

    Raises:
        CorruptFileError: the file is cut or altered.
    """
    for number, line in enumerate(_read_lines(path, max_bytes), start=1):
        if line is None:
            yield number, _large_row(path, number, max_bytes)
        elif line.strip():
            yield number, _line_to_document(line, path, number, source or path.name.split(".")[0])


def read_good_rows(
    path: Path, source: str | None = None, max_bytes: int | None = None
) -> Iterator[tuple[int, Document | CorruptFileError]]:
    """Yield the number and the document of each line, or what is wrong with it; see `read_rows`.

    Raises:
        CorruptFileError: the file is cut or altered, or none of its lines is a document.
    """
    rows: list[tuple[int, Document | CorruptFileError]] = []
    first, is_read = None, False
    for number, row in read_rows(path, source, max_bytes):
        rows.append((number, row))
        # A row that is too large may well be a document.
        if isinstance(row, (Document, LargeRowError)):
            is_read = True
        else:
            first = first or row
        if is_read:
            yield from rows
            rows.clear()
    if first is not None and not is_read:
        raise first


def _line_to_document(
    line: bytes, path: Path, number: int, source: str
) -> Document | CorruptFileError:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return _bad_line(path, number, f"{error} in {line[:60]!r}")
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        return _bad_line(path, number, f"no text in {line[:60]!r}")
    source = _to_unicode(str(row.get("source") or source))
    url = _to_unicode(str(row.get("url") or f"{path.name}#{number}"))
    meta = row.get("meta")
    return Document(
        id=_to_unicode(str(row.get("id") or document_id(source, url))),
        text=_to_unicode(row["text"]),
        source=source,
        url=url,
        lang=str(row.get("lang") or ""),
        meta=meta if isinstance(meta, dict) else {},
    )


def _to_unicode(text: str) -> str:
    """Return a text with its lone surrogates, which JSON can hold and UTF-8 cannot, escaped."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def _bad_line(path: Path, number: int, found: str) -> CorruptFileError:
    return CorruptFileError(
        expected=f"a JSON object with a string `text` on line {number} of `{path}`",
        found=found,
        fix="Correct or remove that line; a file of Fivefold's own is made again with `--fresh`",
    )


def _large_row(path: Path, number: int, max_bytes: int | None) -> LargeRowError:
    return LargeRowError(
        expected=f"at most {max_bytes:,} bytes on line {number} of `{path}`",
        found="more",
        fix="Cut that text into several rows, or allow larger ones",
    )


def _read_lines(path: Path, max_bytes: int | None) -> Iterator[bytes | None]:
    """Yield the lines; None for one of more than `max_bytes`."""
    parts: list[bytes] = []
    size = 0

    def is_large() -> bool:
        return max_bytes is not None and size > max_bytes

    for block in read_content(path):
        for place, part in enumerate(block.split(b"\n")):
            if place:
                yield None if is_large() else b"".join(parts)
                parts.clear()
                size = 0
            size += len(part)
            if is_large():
                parts.clear()
            else:
                parts.append(part)
    if size:
        yield None if is_large() else b"".join(parts)


def read_content(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in blocks, decompressed where its name ends in `.zst` or `.gz`.

    Raises:
        CorruptFileError: the file is cut or altered.
    """
    readers = {".zst": _read_zst_blocks, ".gz": _read_gzip_blocks}
    return readers.get(path.suffix.lower(), _read_blocks)(path)


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _read_zst_blocks(path: Path) -> Iterator[bytes]:
    """Decompress frame after frame; a frame that does not reach its end is an error."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        for block in _read_blocks(path):
            while block:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise _bad_frame(path, str(error)) from error
    if not frame.eof:
        raise _bad_frame(path, "a file that ends inside a frame")


def _read_gzip_blocks(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    # A file that cannot be opened is no damage.
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _bad_frame(path, str(error), "gzip members") from error


def _bad_frame(path: Path, found: str, what: str = "zstd frames") -> CorruptFileError:
    return CorruptFileError(
        expected=f"whole {what} in `{path}`",
        found=found,
        fix="Copy the file again; one of Fivefold's own is made again with `--fresh`",
    )
