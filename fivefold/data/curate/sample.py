"""A part of a package: the first pages in hashed order, as an archive of their own.

So every step behind it sees a smaller package, whose content names what is made of it.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fivefold.artifact import atomic_write
from fivefold.data.archive import read_members
from fivefold.data.curate.shard import Shard


def sample_shards(shards: Sequence[Shard], max_bytes: int | None, folder: Path) -> list[Shard]:
    """Return the shards, those that are archives cut to `max_bytes` of pages; None cuts nothing.

    The page that passes the limit is the last one. Copies are stored, not compressed, in `folder`.

    Raises:
        CorruptFileError: an archive is damaged.
        StorageError: the disk is full.
    """
    return [
        _sample(shard, max_bytes, folder)
        if max_bytes is not None and shard.kind == "archive"
        else shard
        for shard in shards
    ]


def _sample(shard: Shard, max_bytes: int, folder: Path) -> Shard:
    path = folder / f"{shard.source}.zip"
    taken = 0
    # ZipInfo by name alone has a fixed date: equal pages make equal bytes.
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, content in read_members(shard.path, shard.members):
            archive.writestr(zipfile.ZipInfo(name), content)
            taken += len(content)
            if taken >= max_bytes:
                break
    return replace(shard, path=path)
