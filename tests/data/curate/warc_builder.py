"""Builds WARC files by hand, record by record, so that tests know every byte."""

import gzip
from collections.abc import Sequence

import zstandard


def warc_record(
    url: str,
    body: bytes,
    *,
    content_type: str = "text/html",
    status: str = "200 OK",
    headers: str = "",
    kind: str = "response",
) -> bytes:
    """Return one record; `headers` are further HTTP headers, each with its line end."""
    http = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{headers}\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2024-05-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def warc_bytes(records: Sequence[bytes], suffix: str) -> tuple[bytes, list[int]]:
    """Return a file of these records, and where each of them ends in it."""
    pack = {
        ".warc": bytes,
        ".warc.gz": gzip.compress,
        ".warc.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    }[suffix]
    content, ends = b"", []
    for record in records:
        content += pack(record)
        ends.append(len(content))
    return content, ends
