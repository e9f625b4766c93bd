"""Builders of small real objects: packages, documents, token files."""

import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zstandard

from fivefold.data.document import Document, document_id
from fivefold.data.packed_source import PackedSource
from fivefold.data.packing import pack_documents
from fivefold.data.token_file import open_token_file, write_token_file
from fivefold.stage import ProgressTask


class _Silent:
    def advance(self, amount: float = 1, **shown: str) -> None:
        pass


@contextmanager
def silent_track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    yield _Silent()


def tar_bytes(files: Mapping[str, bytes], compression: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return _compress(raw.getvalue(), compression)


def _compress(content: bytes, compression: str) -> bytes:
    if compression == "zst":
        return zstandard.ZstdCompressor(write_checksum=True).compress(content)
    return {"xz": lzma.compress, "gz": gzip.compress}[compression](content)


def deb_bytes(files: Mapping[str, bytes], compression: str = "xz") -> bytes:
    members = {
        "debian-binary": b"2.0\n",
        f"control.tar.{compression}": tar_bytes({"./control": b"Package: x\n"}, compression),
        f"data.tar.{compression}": tar_bytes(files, compression),
    }
    content = b"!<arch>\n"
    for name, body in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        content += header + body + b"\n" * (len(body) % 2)
    return content


def make_document(text: str, url: str, source: str = "s") -> Document:
    return Document(id=document_id(source, url), text=text, source=source, url=url)


def make_source(
    folder: Path, name: str, lengths: list[int], context_tokens: int, seed: int = 0
) -> PackedSource:
    """Write documents of random ids 1..999 with these lengths, and pack them."""
    random = np.random.default_rng([seed, len(name), *name.encode()])
    documents = [random.integers(1, 1000, size=length) for length in lengths]
    write_token_file(
        folder / name, documents, vocab_size=1000, tokenizer_hash="t" * 16, source=name
    )
    tokens = open_token_file(folder / name, verify=True)
    return PackedSource(name, tokens, pack_documents(tokens.lengths, context_tokens, "best_fit"))
