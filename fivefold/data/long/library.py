"""The library: all documents of a run in the order of their ids, their chunks and vectors.

Built once, by one task, and opened by every task of the methods: so what is similar to what does
not depend on shards or workers. Everything is held in memory: texts, and 4 bytes a dimension and
chunk (4 KB with the default width).
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fivefold.artifact import atomic_write
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.long.chunk import Chunk, cut_into_chunks
from fivefold.data.long.config import IndexConfig
from fivefold.data.long.measure import Ruler
from fivefold.data.long.vectors import HashedTfidf, content_words, nearest

_BLOCK = 256
"""Queries of one matrix product."""


@dataclass(frozen=True)
class Library:
    """Documents, and a table of their chunks, document after document."""

    documents: list[Document]
    owner: NDArray[np.int64]
    """Document of each chunk."""
    begin: NDArray[np.int64]
    """First character of each chunk."""
    end: NDArray[np.int64]
    tokens: NDArray[np.int64]
    """Tokens of each chunk."""
    vectors: NDArray[np.float32]
    """A row of length 1 for each chunk."""
    embedder: HashedTfidf
    frequencies: dict[str, int]
    """In how many chunks a word stands."""

    def text(self, chunk: int) -> str:
        """Return a chunk's text."""
        return self.documents[self.owner[chunk]].text[self.begin[chunk] : self.end[chunk]]

    def chunks(self, document: int) -> range:
        """Return the numbers of a document's chunks."""
        first, last = np.searchsorted(self.owner, [document, document + 1])
        return range(int(first), int(last))

    @cached_property
    def document_tokens(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        sums = np.bincount(self.owner, weights=self.tokens, minlength=len(self.documents))
        return sums.astype(np.int64)

    @cached_property
    def document_vectors(self) -> NDArray[np.float32]:
        """Sum of each document's chunk vectors, at length 1."""
        sums = np.zeros((len(self.documents), self.vectors.shape[1]), dtype=np.float32)
        np.add.at(sums, self.owner, self.vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / np.where(lengths > 0, lengths, 1).astype(np.float32)

    def similar_chunks(
        self, queries: NDArray[np.float32], document: int, count: int, low: float, high: float
    ) -> list[list[tuple[int, float]]]:
        """Return for each query up to `count` chunks of other documents, with their cosines.

        Best first, none below `low`. Chunks with a cosine above `high` to any chunk of the document
        are copies, and left out: one would bring the document's own text back.
        """
        own = self.chunks(document)
        is_excluded = np.zeros(len(self.owner), dtype=bool)
        is_excluded[own.start : own.stop] = True
        found: list[list[tuple[int, float]]] = []
        for start in range(own.start, own.stop, _BLOCK):
            stop = min(own.stop, start + _BLOCK)
            is_excluded |= (self.vectors[start:stop] @ self.vectors.T > high).any(axis=0)
        able = np.flatnonzero(~is_excluded)
        others = self.vectors[able]
        for start in range(0, len(queries), _BLOCK):
            order, cosines = nearest(queries[start : start + _BLOCK], others, count)
            for places, similar in zip(order, cosines.tolist(), strict=True):
                pairs = zip(able[places].tolist(), similar, strict=True)
                found.append([(chunk, cosine) for chunk, cosine in pairs if cosine >= low])
        return found


def choose_roots(documents: Sequence[Document], candidates: Sequence[int], count: int) -> set[int]:
    """Return `count` of the candidates, those with the smallest hash of their ids."""
    ranked = sorted(
        candidates, key=lambda k: (xxhash.xxh3_64_intdigest(documents[k].id.encode()), k)
    )
    return set(ranked[:count])


@dataclass(frozen=True)
class CutDocument:
    """A document with its chunks."""

    document: Document
    chunks: Sequence[Chunk]
    words: Counter[str]
    """In how many of the chunks a word stands."""


class LibraryBuilder:
    """Cuts documents, which come in the order of their ids; embeds and writes them at the end."""

    def __init__(self, config: IndexConfig, ruler: Ruler) -> None:
        """Begin without any document."""
        self._config, self._ruler = config, ruler
        self._documents: list[Document] = []
        self._rows: list[tuple[int, int, int, int]] = []
        self._frequencies: Counter[str] = Counter()

    def cut(self, document: Document) -> CutDocument:
        """Cut a document and count its words; the library has nothing of it before `add`."""
        chunks = cut_into_chunks(document.text, self._config.chunk_tokens, self._ruler)
        words: Counter[str] = Counter()
        for chunk in chunks:
            words.update(set(content_words(document.text[chunk.begin : chunk.end])))
        return CutDocument(document, chunks, words)

    def add(self, cut: CutDocument) -> None:
        """Take a document that has been cut."""
        number = len(self._documents)
        self._rows += [(number, one.begin, one.end, one.tokens) for one in cut.chunks]
        self._frequencies.update(cut.words)
        self._documents.append(cut.document)

    def write(self, folder: Path) -> None:
        """Embed everything and write the library."""
        config, rows, documents = self._config, self._rows, self._documents
        table = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
        most = max(1, config.max_document_share * len(rows))
        kept = {word: n for word, n in sorted(self._frequencies.items()) if n <= most}
        embedder = HashedTfidf(kept, len(rows), config.dimensions)
        texts = [documents[row[0]].text[row[1] : row[2]] for row in rows]
        with document_writer(folder / "documents.jsonl.zst") as write:
            for document in documents:
                write(document)
        with atomic_write(folder / "words.json") as partial:
            facts = {"chunks": len(rows), "dimensions": config.dimensions, "frequencies": kept}
            partial.write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
        with atomic_write(folder / "chunks.npz") as partial, partial.open("wb") as file:
            np.savez(file, table=table, vectors=embedder.embed(texts))


def open_library(folder: Path) -> Library:
    """Read what `LibraryBuilder` wrote."""
    facts = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    with np.load(folder / "chunks.npz") as arrays:
        table, vectors = arrays["table"], arrays["vectors"]
    owner, begin, end, tokens = table.T
    return Library(
        documents=list(read_documents(folder / "documents.jsonl.zst")),
        owner=owner,
        begin=begin,
        end=end,
        tokens=tokens,
        vectors=vectors,
        embedder=HashedTfidf(facts["frequencies"], facts["chunks"], facts["dimensions"]),
        frequencies=facts["frequencies"],
    )
