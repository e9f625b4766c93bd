"""NExtLong: a document's parts, each followed by chunks of others that look like it.

For a root of chunks m_1 .. m_p the sequence is m_1, negatives of m_1, m_2, negatives of m_2, ...:
what belongs together is driven apart, and what stands between is similar enough to be mistaken for
it (arXiv:2501.12766; the chunk before its negatives won its ablation). Chunks of one document keep
their order, no negative comes twice, none is of the root or a copy of its chunk. The paper gives
every part k = ceil((T - |root|) / (p * s)) negatives of equal size s; chunks here differ in size,
so part i gets negatives until i/p of the room beside the root is filled. A sequence that does not
reach the context is discarded, a longer one cut.

Its dependencies: each part of the root on the part before it.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from fivefold.data.document import Document
from fivefold.data.long.config import LongConfig
from fivefold.data.long.gap import Statistics
from fivefold.data.long.library import Library, choose_roots
from fivefold.data.long.made import Made, Unit, joinable, make_sequence, single_units
from fivefold.data.long.measure import Ruler

_OVERFILL = 1.02
"""Sizes of chunks add up to a few tokens more than the whole; so much more is laid out."""
_SPARE = 3
"""Neighbours looked up for each negative needed, as others may have taken them."""


class NextLong:
    """Extends roots by hard negatives."""

    name = "nextlong"

    def __init__(self, library: Library, config: LongConfig, ruler: Ruler) -> None:
        """Take the library, and the sizes of the recipe."""
        assert config.nextlong
        self._library = library
        self._config = config.nextlong
        self._ruler = ruler
        self._room = ruler.room(config.context_tokens)
        sizes = library.document_tokens
        able = np.flatnonzero(sizes >= self._config.min_root_tokens).tolist()
        self._roots = choose_roots(library.documents, able, self._config.max_roots)
        self._typical = max(1.0, float(np.mean(library.tokens))) if len(library.tokens) else 1.0
        self.statistics = Statistics()

    def units(self, rank: int, world_size: int) -> Iterator[Unit]:
        """See `Method`."""
        return single_units(self._library.documents, rank, world_size)

    def make(self, unit: Unit) -> list[Made]:
        """See `Method`."""
        document, place = unit.documents[0], unit.places[0]
        if self._library.document_tokens[place] < self._config.min_root_tokens:
            return [Made(document, "nextlong.short_root")]
        if place not in self._roots:
            return [Made(document, "nextlong.not_chosen")]
        parts = self._root_parts(place)
        order = self._lay_out(place, parts)
        if order is None:
            return [Made(document, "nextlong.few_negatives")]
        return [Made(document, sequence=self._compose(document, place, order))]

    def _root_parts(self, place: int) -> list[int]:
        """Return the chunks of a root that may stand in its sequence."""
        chunks = self._library.chunks(place)
        ends = np.cumsum(self._library.tokens[chunks.start : chunks.stop])
        fitting = int(np.searchsorted(ends, self._config.root_share * self._room, side="right"))
        return list(chunks)[: max(1, fitting)]

    def _lay_out(self, place: int, parts: list[int]) -> list[tuple[int, float]] | None:
        """Return chunks with their cosines in order, a root's own with 1; None: too few."""
        library, config = self._library, self._config
        root_tokens = int(library.tokens[parts].sum())
        beside = self._room * _OVERFILL - root_tokens
        count = int(np.ceil(beside / (len(parts) * self._typical)))
        similar = library.similar_chunks(
            library.vectors[parts],
            place,
            _SPARE * count + len(parts),
            config.min_similarity,
            config.max_similarity,
        )
        used: set[int] = set()
        order: list[tuple[int, float]] = []
        filled = 0
        for number, (part, neighbours) in enumerate(zip(parts, similar, strict=True), start=1):
            order.append((part, 1.0))
            for chunk, cosine in neighbours:
                if filled >= beside * number / len(parts):
                    break
                if chunk not in used:
                    used.add(chunk)
                    order.append((chunk, cosine))
                    filled += int(library.tokens[chunk])
        return order if filled >= beside else None

    def _compose(self, document: Document, place: int, order: list[tuple[int, float]]) -> Document:
        library, statistics = self._library, self.statistics
        texts = [joinable(library.text(chunk)) for chunk, _ in order]
        text = self._ruler.cut("".join(texts), self._room)
        total = self._ruler.size(text)
        statistics.enter_sequence(total)
        begins = np.cumsum([0, *(int(library.tokens[chunk]) for chunk, _ in order)])
        begins = np.minimum(begins, total)
        own = [k for k, (chunk, _) in enumerate(order) if library.owner[chunk] == place]
        for before, after in itertools.pairwise(own):
            statistics.enter_dependency(int(begins[before]), int(begins[after]), total)
        negatives = [(chunk, cosine) for chunk, cosine in order if library.owner[chunk] != place]
        statistics.enter_value("cosine of negatives", sum(c for _, c in negatives), len(negatives))
        # What chance would give: the root's chunks against chunks evenly spread over the library.
        spread = np.linspace(0, len(library.vectors) - 1, 32).astype(np.int64)
        chance = library.vectors[[order[k][0] for k in own]] @ library.vectors[spread].T
        statistics.enter_value("cosine of random chunks", float(chance.sum()), chance.size)
        meta = {
            "root": document.id,
            "origin": document.source,
            "parts": [
                {"document": library.documents[library.owner[chunk]].id, "cosine": round(cosine, 4)}
                for chunk, cosine in order
            ],
        }
        return make_sequence(self.name, document.id, text, document.lang, meta)
