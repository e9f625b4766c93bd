r"""Tokenised documents on disk: Megatron's `.bin`/`.idx` pair and a manifest beside it.

Layout of `.idx` (little endian, as in Megatron-LM's indexed_dataset): 9 bytes `MMIDIDX\0\0`,
uint64 version 1, uint8 dtype code, uint64 sequences S, uint64 document marks D, int32 lengths [S],
int64 byte offsets [S], int64 document index [D]. `.bin` is the bare ids: uint16 where the
vocabulary has fewer than 65,500 ids, else int32. Surprise: D counts marks, one more than there are
documents. `NAME.json` says what the ids mean (tokenizer hash) and what the bytes hash to.
"""

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fivefold.artifact import atomic_write, write_json
from fivefold.errors import CorruptFileError, MissingFileError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
_SMALL_VOCABULARY = 65_500


@dataclass(frozen=True)
class TokenManifest:
    """What a token file holds."""

    source: str
    tokens: int
    documents: int
    dtype: str
    vocab_size: int
    tokenizer_hash: str
    sha256: str
    """Of the `.bin`."""


@dataclass(frozen=True)
class TokenFile:
    """An open token file; ids stay on disk until they are read."""

    path: Path
    """Without suffix."""
    manifest: TokenManifest
    ids: np.ndarray
    """All ids, one after the other: memory-mapped [tokens]."""
    starts: np.ndarray
    """Where each document begins in `ids`, and where the last one ends: int64 [documents + 1]."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document: int64 [documents]."""
        return np.diff(self.starts)

    def document(self, number: int) -> np.ndarray:
        """Return the ids of one document: [tokens of the document]."""
        return self.ids[self.starts[number] : self.starts[number + 1]]


def write_token_file(
    path: Path,
    documents: Iterable[np.ndarray | list[int]],
    *,
    vocab_size: int,
    tokenizer_hash: str,
    source: str,
) -> TokenManifest:
    """Write `path`.bin, .idx and .json, in this order, each whole or not at all.

    The manifest comes last: where it stands, the pair is complete.

    Raises:
        StorageError: the disk is full or read-only.
    """
    dtype = np.dtype("<u2" if vocab_size < _SMALL_VOCABULARY else "<i4")
    lengths: list[int] = []
    digest = hashlib.sha256()
    with atomic_write(_with(path, ".bin")) as partial, partial.open("wb") as file:
        for ids in documents:
            block = np.asarray(ids, dtype=np.int64)
            assert block.size == 0 or 0 <= block.min() <= block.max() < vocab_size, (
                "id out of range"
            )
            content = block.astype(dtype).tobytes()
            digest.update(content)
            file.write(content)
            lengths.append(len(block))
    with atomic_write(_with(path, ".idx")) as partial:
        partial.write_bytes(_index_bytes(lengths, dtype))
    manifest = TokenManifest(
        source=source,
        tokens=sum(lengths),
        documents=len(lengths),
        dtype=dtype.name,
        vocab_size=vocab_size,
        tokenizer_hash=tokenizer_hash,
        sha256=digest.hexdigest(),
    )
    write_json(_with(path, ".json"), asdict(manifest))
    return manifest


def _index_bytes(lengths: list[int], dtype: np.dtype) -> bytes:
    sizes = np.asarray(lengths, dtype="<i4")
    ends = np.cumsum(sizes, dtype=np.int64)
    offsets = (ends - sizes) * dtype.itemsize
    marks = np.arange(len(lengths) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, _VERSION, _CODES[dtype.name], len(lengths), len(marks))
    return header + sizes.tobytes() + offsets.astype("<i8").tobytes() + marks.tobytes()


def open_token_file(path: Path, *, verify: bool = False) -> TokenFile:
    """Open `path`.bin/.idx/.json; sizes are always checked, the bytes' hash with `verify`.

    Raises:
        MissingFileError: one of the three files is not there.
        CorruptFileError: a file is cut, altered, or does not fit the others.
    """
    for suffix in (".json", ".idx", ".bin"):
        if not _with(path, suffix).is_file():
            raise MissingFileError(
                expected=f"the token file `{_with(path, suffix)}`",
                found="no such file",
                fix="Run the stage `tokens` first; the three files of one name belong together",
            )
    manifest = _read_manifest(_with(path, ".json"))
    lengths, marks, dtype = _read_index(_with(path, ".idx"))
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    size = _with(path, ".bin").stat().st_size
    if size != ends[-1] * dtype.itemsize or ends[-1] != manifest.tokens:
        raise _corrupt(
            _with(path, ".bin"),
            f"{manifest.tokens:,} tokens of {dtype.itemsize} bytes",
            f"{size:,} bytes",
        )
    if verify:
        _check_digest(_with(path, ".bin"), manifest)
    ids = np.memmap(_with(path, ".bin"), dtype=dtype, mode="r") if size else np.empty(0, dtype)
    return TokenFile(path=path, manifest=manifest, ids=ids, starts=ends[marks])


def _read_manifest(path: Path) -> TokenManifest:
    try:
        return TokenManifest(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise _corrupt(path, "the manifest of a token file", str(error)) from error


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Return lengths [S], document marks [D] and the dtype of the ids."""
    content = path.read_bytes()
    if len(content) < _HEADER.size:
        raise _corrupt(path, f"a header of {_HEADER.size} bytes", f"{len(content)} bytes")
    magic, version, code, sequences, marks = _HEADER.unpack_from(content)
    names = [name for name, known in _CODES.items() if known == code]
    if magic != _MAGIC or version != _VERSION or not names:
        raise _corrupt(path, "a Megatron index, version 1", f"magic {magic!r}, version {version}")
    whole = _HEADER.size + 12 * sequences + 8 * marks
    if len(content) != whole:
        raise _corrupt(path, f"{whole:,} bytes", f"{len(content):,} bytes")
    lengths = np.frombuffer(content, "<i4", sequences, _HEADER.size)
    offsets = np.frombuffer(content, "<i8", sequences, _HEADER.size + 4 * sequences)
    index = np.frombuffer(content, "<i8", marks, _HEADER.size + 12 * sequences)
    dtype = np.dtype(names[0])
    ends = np.cumsum(lengths, dtype=np.int64)
    ordered = marks > 0 and index[0] == 0 and index[-1] == sequences and (np.diff(index) >= 0).all()
    if not ordered or (lengths < 0).any() or (offsets != (ends - lengths) * dtype.itemsize).any():
        raise _corrupt(path, "documents one after the other", "offsets that jump")
    return lengths, index, dtype


def _check_digest(path: Path, manifest: TokenManifest) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != manifest.sha256:
        raise _corrupt(path, f"bytes with sha256 {manifest.sha256[:16]}", f"sha256 {found[:16]}")


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _corrupt(path: Path, expected: str, found: str) -> CorruptFileError:
    return CorruptFileError(
        expected=f"{expected} in `{path}`",
        found=found,
        fix="Make the token files again: run the recipe with `--fresh --only tokens`",
    )
