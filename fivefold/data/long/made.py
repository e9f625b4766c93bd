"""What a method makes: units of documents go in, each document gets an outcome, sequences come out.

A unit is what a method decides on at once: a root, a cluster, a repository, a conversation. Each
of its documents is kept or dropped for a reason, and a sequence hangs on one of those that are
kept; so documents in = kept + dropped for every method, whatever the number of sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash

from fivefold.data.document import Document, document_id
from fivefold.data.long.gap import Statistics

WITH_MODEL = ("entropylong",)
"""Methods that ask a model about each of their documents."""


@dataclass(frozen=True)
class Made:
    """What became of one document."""

    document: Document
    reason: str = ""
    """Why it is not used, `method.rule`; empty if it is."""
    sequence: Document | None = None
    """A sequence that was made here."""


@dataclass(frozen=True)
class Unit:
    """Documents that a method looks at together."""

    documents: tuple[Document, ...]
    places: tuple[int, ...] = ()
    """Their numbers in the library; of a conversation, its own number."""


class Method(Protocol):
    """A way of making sequences."""

    name: str
    """Source of its sequences and beginning of its reasons."""
    statistics: Statistics
    """Of the sequences made so far."""

    def units(self, rank: int, world_size: int) -> Iterator[Unit]:
        """Yield a task's share of the units; all tasks' shares hold each document once."""
        ...

    def make(self, unit: Unit) -> list[Made]:
        """Return an outcome for every document of the unit."""
        ...


def single_units(documents: Sequence[Document], rank: int, world_size: int) -> Iterator[Unit]:
    """Yield every n-th document as a unit of its own."""
    for place in range(rank, len(documents), world_size):
        yield Unit((documents[place],), (place,))


def make_sequence(method: str, root: str, text: str, lang: str, meta: dict[str, Any]) -> Document:
    """Return a sequence as a document; `root` is what it is named after."""
    return Document(document_id(method, root), text, method, root, lang, meta)


def generator_for(seed: int, *names: str) -> np.random.Generator:
    """Return a generator that depends on a seed and names alone, not on the order of work."""
    digest = xxhash.xxh3_64_intdigest("\0".join(names).encode())
    return np.random.default_rng([seed, digest])


def joinable(text: str) -> str:
    """Return a text that ends its last line."""
    return text if text.endswith("\n") else text + "\n"
