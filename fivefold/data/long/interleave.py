"""Interleaved packing: similar documents, cut into blocks, riffled into one sequence.

Each document goes on behind blocks of others that speak of nearly the same (GLM-5 report, section
2.3, "interleaved packing" of highly similar texts, against the loss of what stands in the middle;
the report gives no construction, this one is ours). Attention is not masked between them, for the
sequence is one document.

The riffle draws the next document with a probability proportional to the blocks it has left, which
makes every order of blocks that keeps each document's own order equally likely. So of N blocks, n
of them of one document, the number of foreign blocks between two neighbours of its n has
P(gap = k) = C(N - k - 1, n - 1) / C(N, n) and the mean (N - n) / (n + 1), and each of its blocks
stands anywhere with the law of an order statistic: no depth is preferred.

Its dependencies: each block on the block of the same document before it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from fivefold.data.document import Document
from fivefold.data.long.chunk import cut_into_chunks
from fivefold.data.long.config import LongConfig
from fivefold.data.long.gap import Statistics
from fivefold.data.long.library import Library
from fivefold.data.long.made import Made, Unit, generator_for, joinable, make_sequence
from fivefold.data.long.measure import Ruler
from fivefold.data.long.vectors import nearest

_BLOCK = 256
"""Documents of one matrix product."""
_NEIGHBOURS = 64
"""Similar documents looked at for a cluster."""
_HEADER_TOKENS = 24
"""Room kept for a header."""


def riffle(counts: Sequence[int], random: np.random.Generator) -> list[int]:
    """Return an order of all blocks as the number of the document of each, see the module."""
    order = np.repeat(np.arange(len(counts)), counts)
    # A uniform permutation of the labels is that draw, one block after the other.
    return random.permutation(order).tolist()


def gap_probability(gap: int, blocks: int, own: int) -> float:
    """Return P(gap foreign blocks between two neighbours of a document's `own` of `blocks`)."""
    return math.comb(blocks - gap - 1, own - 1) / math.comb(blocks, own)


class Interleave:
    """Clusters of similar documents, each a sequence."""

    name = "interleave"

    def __init__(self, library: Library, config: LongConfig, ruler: Ruler) -> None:
        """Take the library, and the sizes of the recipe."""
        assert config.interleave
        self._library = library
        self._config = config.interleave
        self._ruler = ruler
        self._seed = config.seed
        self._room = ruler.room(config.context_tokens)
        self._min_tokens = config.min_fill * self._room
        self.statistics = Statistics()

    @cached_property
    def clusters(self) -> list[tuple[list[int], str]]:
        """All documents in clusters, each with the reason why it makes no sequence, or none.

        Greedy, in the order of the documents: the nearest that are left join the first one until
        their shares fill the context.
        """
        taken = np.zeros(len(self._library.documents), dtype=bool)
        clusters: list[tuple[list[int], str]] = []
        left_over: dict[int, str] = {}
        for first, similar in self._neighbours():
            if taken[first]:
                continue
            near = [other for other in similar if other != first and not taken[other]]
            members, reason = self._fill(first, near)
            if reason:
                left_over[first] = reason
                continue
            taken[members] = True
            clusters.append((members, ""))
        clusters += [([one], why) for one, why in left_over.items() if not taken[one]]
        return clusters

    def _neighbours(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each document with those that are similar to it, the nearest first."""
        vectors = self._library.document_vectors
        for start in range(0, len(vectors), _BLOCK):
            order, cosines = nearest(vectors[start : start + _BLOCK], vectors, _NEIGHBOURS)
            for row, places in enumerate(order):
                is_similar = cosines[row] >= self._config.min_similarity
                yield start + row, places[is_similar].tolist()

    def _fill(self, first: int, near: list[int]) -> tuple[list[int], str]:
        config, sizes = self._config, self._library.document_tokens
        members = [first]
        tokens = 0
        vectors = self._library.document_vectors
        for other in near:
            # Neighbours of one document may be copies of each other.
            if (vectors[members] @ vectors[other] > config.max_similarity).any():
                continue
            members.append(other)
            tokens = int(np.minimum(sizes[members], self._share(len(members))).sum())
            is_full = tokens >= self._room - len(members)
            if len(members) == config.max_documents or (
                len(members) >= config.min_documents and is_full
            ):
                break
        if len(members) < config.min_documents:
            return members, "interleave.few_similar"
        return members, "interleave.short" if tokens < self._min_tokens else ""

    @cached_property
    def _reasons(self) -> dict[int, str]:
        return {members[0]: reason for members, reason in self.clusters if reason}

    def _share(self, documents: int) -> int:
        return self._room // documents

    def units(self, rank: int, world_size: int) -> Iterator[Unit]:
        """See `Method`."""
        for members, _ in self.clusters[rank::world_size]:
            yield Unit(tuple(self._library.documents[k] for k in members), tuple(members))

    def make(self, unit: Unit) -> list[Made]:
        """See `Method`."""
        if len(unit.places) == 1:
            return [Made(unit.documents[0], self._reasons[unit.places[0]])]
        sequence = self._compose(unit)
        first, *others = unit.documents
        return [Made(first, sequence=sequence), *(Made(one) for one in others)]

    def _compose(self, unit: Unit) -> Document:
        config = self._config
        random = generator_for(self._seed, self.name, *(one.id for one in unit.documents))
        share = self._share(len(unit.documents))
        blocks = [self._blocks(one.text, share) for one in unit.documents]
        order = riffle([len(some) for some in blocks], random)
        following = [iter(some) for some in blocks]
        parts: list[str] = []
        previous = -1
        for owner in order:
            is_named = owner != previous and random.random() < config.header_share
            header = f"[{_title(unit.documents[owner])}]\n" if is_named else ""
            parts.append(header + next(following[owner]))
            previous = owner
        text = self._ruler.cut("".join(parts), self._room)
        self._count(order, parts, self._ruler.size(text))
        meta = {"documents": [one.id for one in unit.documents], "blocks": order}
        root = "+".join(one.id for one in unit.documents)
        return make_sequence(self.name, root, text, unit.documents[0].lang, meta)

    def _blocks(self, text: str, tokens: int) -> list[str]:
        """Cut the beginning of a document of at most `tokens` into blocks."""
        size = min(self._config.block_tokens, max(1, tokens))
        chunks = cut_into_chunks(text, size, self._ruler)
        blocks, used = [], 0
        for chunk in chunks:
            used += chunk.tokens
            if blocks and used > tokens:
                break
            blocks.append(joinable(text[chunk.begin : chunk.end]))
        return blocks

    def _count(self, order: list[int], parts: list[str], total: int) -> None:
        statistics = self.statistics
        statistics.enter_sequence(total)
        begins = np.minimum(np.cumsum([0, *self._ruler.sizes(parts).tolist()]), total)
        for owner in sorted(set(order)):
            places = [k for k, one in enumerate(order) if one == owner]
            for before, after in itertools.pairwise(places):
                statistics.enter_dependency(int(begins[before]), int(begins[after]), total)
                statistics.enter_value("foreign blocks in a gap", after - before - 1)
                law = (len(order) - len(places)) / (len(places) + 1)
                statistics.enter_value("foreign blocks in a gap by the law", law)


def _title(document: Document) -> str:
    title = str(document.meta.get("title") or document.url or document.id)
    return title.replace("\n", " ")[-3 * _HEADER_TOKENS :]
