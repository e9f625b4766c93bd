"""Which documents of a run are used for what, by the hash of their ids and by nothing else.

Halves: fastText remembers what it learned from, and the run's own pages are its negatives; so two
models learn from one half each, and each scores the other half. Sample: the documents that are
embedded, where a run has more than it can embed.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from fivefold.data.curate.shard import Shard
from fivefold.data.document import Document
from fivefold.data.web.classifier import draw
from fivefold.data.web.reference import read_references

HALVES = 2


def half_of(document_id: str) -> int:
    """Return to which half of a run a document belongs."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), seed=13) % HALVES


def half_folder(folder: str | Path, half: int) -> Path:
    """Return where the model that learned from a half lies."""
    return Path(folder) / f"half-{half}"


class Sample:
    """The documents of a run that are embedded: all, or those with the smallest hash."""

    def __init__(self, ids: Iterable[str], most: int | None) -> None:
        """Choose among all ids of a run."""
        hashes = sorted({self._hash(one) for one in ids})
        self._last = hashes[most - 1] if most is not None and most < len(hashes) else 1 << 64

    def __contains__(self, document_id: str) -> bool:
        return self._hash(document_id) <= self._last

    @staticmethod
    def _hash(document_id: str) -> int:
        return xxhash.xxh3_64_intdigest(document_id.encode(), seed=17)


def draw_evenly(shards: Sequence[Shard], count: int, max_characters: int) -> list[Document]:
    """Return up to `count` reference documents, of each source at most its equal share."""
    names = list(dict.fromkeys(shard.source for shard in shards))
    found: list[Document] = []
    for name in names:
        own = [shard for shard in shards if shard.source == name]
        found += draw(read_references(own, max_characters), max(1, count // len(names)))
    return found
