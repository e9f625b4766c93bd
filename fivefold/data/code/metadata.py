"""Does a file's metadata belong to its content? The check that Software Heritage dumps need.

GLM-5 (section 2.2) repairs metadata that an archive had attached to the wrong content. A record
names path, size and a digest; content whose digest is not the recorded one is looked for among the
records of the same shard that do not fit either, so that shifted or permuted rows find their
content again. What finds no owner is dropped, never trained on under another file's name.

Surprise: a digest that fits proves path and licence too, for they come from the same record; a size
alone proves little, so that it is only used where no digest is recorded.
"""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from fivefold.errors import CorruptFileError

Digest = Literal["", "git", "sha1", "sha256", "sha256-base64"]
"""How a recorded digest was made: git's blob id, hexadecimal, or as wheels write it."""


@dataclass(frozen=True)
class Record:
    """What metadata says of a file's content."""

    digest: str = ""
    digest_kind: Digest = ""
    size_bytes: int | None = None


State = Literal["unchecked", "fits", "realigned", "digest", "size"]
"""Nothing recorded; content and record agree; content came from another row; no content fits."""
Row = TypeVar("Row")


def digest_of(content: bytes, kind: Digest) -> str:
    """Return the digest of a content, written as its kind is.

    Raises:
        CorruptFileError: an unknown kind.
    """
    if kind == "git":
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if kind == "sha1":
        return hashlib.sha1(content).hexdigest()
    if kind == "sha256":
        return hashlib.sha256(content).hexdigest()
    if kind == "sha256-base64":
        raw = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
        return raw.decode().rstrip("=")
    raise CorruptFileError(
        expected="a digest of kind git, sha1, sha256 or sha256-base64",
        found=repr(kind),
        fix="Correct the metadata, or leave digest and kind out",
    )


def check(record: Record, content: bytes) -> State:
    """Return whether a content is the recorded one."""
    if record.digest:
        found = digest_of(content, record.digest_kind)
        return "fits" if found == record.digest else "digest"
    if record.size_bytes is not None:
        return "fits" if record.size_bytes == len(content) else "size"
    return "unchecked"


def realign(rows: Iterable[tuple[Row, Record, bytes]]) -> Iterator[tuple[Row, bytes, State]]:
    """Yield rows with the content that their record names.

    Rows that fit come at once, the others at the end, in their order, with the content of another
    row that does not fit where one has the recorded digest. Holds those rows in memory.
    """
    strays: list[tuple[Row, Record, bytes]] = []
    for row, record, content in rows:
        state = check(record, content)
        if state == "digest":
            strays.append((row, record, content))
        else:
            yield row, content, state
    contents: dict[tuple[Digest, str], bytes] = {}
    kinds: defaultdict[Digest, int] = defaultdict(int)
    for _, record, _ in strays:
        kinds[record.digest_kind] += 1
    for kind in kinds:
        for _, _, content in strays:
            contents[kind, digest_of(content, kind)] = content
    for row, record, content in strays:
        found = contents.get((record.digest_kind, record.digest))
        yield (row, content, "digest") if found is None else (row, found, "realigned")
