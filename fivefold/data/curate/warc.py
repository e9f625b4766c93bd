"""Pages out of WARC files, plain or compressed, with every cut and every flipped bit noticed.

FastWARC parses records. Decompression is done here, because FastWARC takes a gzip member or zstd
frame that ends early for the end of the file; records are compared with the length that their
header states, and the file has to end where a record ends.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import zstandard

from fivefold.data.curate.web_page import PageForm
from fivefold.errors import CorruptFileError

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

_DAMAGE = (EOFError, OSError, ValueError, zlib.error, zstandard.ZstdError)
_TEXTS: dict[str, PageForm] = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/plain": "text",
    "application/pdf": "pdf",
}
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Response:
    """The answer of a web server, as it was archived."""

    url: str
    content: bytes
    form: PageForm | Literal[""]
    """Empty for any other type of content."""
    charset: str
    """As the server declared it; empty if it did not."""
    status: int
    date: str
    size_bytes: int
    """Of the record; content beyond the limit is not read."""


def read_warc(path: Path, max_bytes: int) -> Iterator[Response]:
    """Yield the responses of a WARC file; the content of those above `max_bytes` is left out.

    Surprise: a cut in the line that closes a record, or in a record that is no response, passes
    unnoticed where a blank line stands before it. No response is lost by it.

    Raises:
        CorruptFileError: the file is empty, cut, altered or no WARC.
    """
    import fastwarc.warc as fastwarc

    if path.stat().st_size == 0:
        raise _corrupt(path, "an empty file")
    with _open(path) as stream:
        try:
            for record in fastwarc.ArchiveIterator(
                stream,  # type: ignore[arg-type]  # it asks for `read` and `tell` alone
                record_types=fastwarc.WarcRecordType.response,
                parse_http=False,
                stream_detect=False,
            ):
                yield _to_response(record, path, max_bytes)
        except CorruptFileError:
            raise
        except _DAMAGE as error:
            raise _corrupt(path, f"{error} near byte {stream.tell():,}") from error
        if not stream.ends_in_blank_line():
            raise _corrupt(path, f"an end inside a record, at byte {stream.tell():,}")


def _to_response(record: "WarcRecord", path: Path, max_bytes: int) -> Response:
    stated = record.headers.get("Content-Length") or ""
    url = record.headers.get("WARC-Target-URI") or ""
    if not stated.isdigit():
        raise _corrupt(path, f"a record without its length, `{url[:80]}`")
    size = int(stated)
    date = record.headers.get("WARC-Date") or ""
    if size > max_bytes:
        return Response(url.strip("<>"), b"", "html", "", 200, date, size)
    record.freeze()
    if record.content_length != size:
        raise _corrupt(path, f"{record.content_length:,} of {size:,} bytes of `{url[:80]}`")
    record.parse_http(auto_decode="all")
    status = record.http_headers.status_code if record.http_headers else None
    return Response(
        url=url.strip("<>"),
        content=record.reader.read(),
        form=_TEXTS.get((record.http_content_type or "").lower(), ""),
        charset=record.http_charset or "",
        status=int(status or 0),
        date=date,
        size_bytes=size,
    )


class _Stream(io.BufferedIOBase):
    """What FastWARC reads: counted, with the last bytes remembered."""

    def __init__(self, inner: io.BufferedIOBase) -> None:
        super().__init__()
        self._inner = inner
        self._count = 0
        self._end = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        # What can be had before a fault comes first, so that whole records before it are read.
        block = self._inner.read1(-1 if size is None else size)
        self._count += len(block)
        self._end = (self._end + block[-4:])[-4:]
        return block

    def tell(self) -> int:
        return self._count

    def ends_in_blank_line(self) -> bool:
        return self._end.replace(b"\r", b"").endswith(b"\n\n")


class _ZstdFrames(io.BufferedIOBase):
    """Decompressed frames, one after the other; a frame that does not end is an error."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__()
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = b""
        self._rest = b""

    def read1(self, size: int = -1, /) -> bytes:
        while not self._ready:
            block = self._rest or self._raw.read(_READ_BYTES)
            if not block:
                if not self._frame.eof:
                    raise EOFError("a file that ends inside a frame")
                return b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(block)
            self._rest = self._frame.unused_data if self._frame.eof else b""
        size = len(self._ready) if size < 0 else size
        block, self._ready = self._ready[:size], self._ready[size:]
        return block


@contextmanager
def _open(path: Path) -> Iterator[_Stream]:
    with path.open("rb") as raw:
        name = path.name.lower()
        if name.endswith(".gz"):
            with gzip.open(raw) as inner:
                yield _Stream(inner)
        elif name.endswith(".zst"):
            yield _Stream(_ZstdFrames(raw))
        else:
            yield _Stream(raw)


def _corrupt(path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(
        expected=f"whole WARC records in `{path}`",
        found=found,
        fix="Copy the file again, leave it out, or set `extract.damaged_files=quarantine` to take "
        "what stands before the damage",
    )
