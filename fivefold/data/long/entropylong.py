"""EntropyLong: contexts from elsewhere that measurably answer what the model did not know.

Of a root the positions of high entropy are taken (above mean + alpha standard deviations); the
tokens around each are the query for chunks of other documents; a chunk stands the test when the
model's entropy at that position falls by more than epsilon of itself with the chunk in front. The
sequence is the verified chunks, shuffled, and the root (arXiv:2510.02330, algorithm of section 3;
shuffling beat order in its ablation).

A weak model's entropies fall by chance too, or never. Two controls stand in the statistics: a
random chunk, put to the same test at the same positions, says how often chance passes; a verbatim
copy of the most uncertain position's surroundings says what any chunk could gain at most.

Its dependencies: each verified position on the end of its chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fivefold.data.document import Document
from fivefold.data.long.config import EntropyLongConfig, LongConfig
from fivefold.data.long.gap import Statistics
from fivefold.data.long.library import Library, choose_roots
from fivefold.data.long.made import (
    Made,
    Unit,
    generator_for,
    joinable,
    make_sequence,
    single_units,
)
from fivefold.data.long.measure import Ruler
from fivefold.data.long.scorer import TokenModel
from fivefold.errors import ConfigError

CEILING = "gain of a verbatim copy (ceiling)"
"""Name of the mean that tells whether the model makes use of a context at all."""
_BATCH_ROWS = 8


@dataclass(frozen=True)
class Dependency:
    """A position of a root that a chunk made more certain."""

    position: int
    """Token of the root."""
    chunk: int
    """Number in the library."""
    before: float
    """Entropy without the chunk, nats."""
    after: float

    @property
    def gain(self) -> float:
        """Share of the entropy that the chunk takes away."""
        return (self.before - self.after) / self.before


def uncertain_positions(
    entropy: NDArray[np.float32], is_word: NDArray[np.bool_], config: EntropyLongConfig
) -> list[int]:
    """Return the positions of high entropy, ascending.

    `is_word` tells which tokens hold a letter or digit; others, and the first ones, are passed
    over. Of positions nearer than `apart_tokens` the most uncertain one counts.
    """
    tail = entropy[config.skipped_tokens :].astype(np.float64)
    if not len(tail):
        return []
    threshold = tail.mean() + config.deviations * tail.std()
    places = np.flatnonzero((entropy > threshold) & is_word)
    places = places[places >= config.skipped_tokens]
    chosen: list[int] = []
    for place in places[np.argsort(-entropy[places], kind="stable")].tolist():
        if all(abs(place - other) >= config.apart_tokens for other in chosen):
            chosen.append(place)
        if len(chosen) == config.max_positions:
            break
    return sorted(chosen)


class EntropyLong:
    """Builds sequences that one model has verified; `units` and `make` as in `Method`."""

    name = "entropylong"

    def __init__(
        self, library: Library, config: LongConfig, ruler: Ruler, model: TokenModel
    ) -> None:
        """Take the model whose entropies count.

        Raises:
            ConfigError: its context does not hold a root and a chunk.
        """
        assert config.entropylong
        self._library = library
        self._config = config.entropylong
        self._ruler = ruler
        self._model = model
        self._seed = config.seed
        self._room = ruler.room(config.context_tokens)
        self._prefix = model.tokenizer.prefix_ids
        # A line end may have to be put between chunk and root.
        space = model.context_tokens - len(self._prefix) - self._config.chunk_tokens - 4
        self._root_tokens = min(self._config.root_tokens, space)
        if self._root_tokens < self._config.min_root_tokens:
            raise ConfigError(
                expected="a model whose context holds a root of `entropylong.min_root_tokens` and "
                "a chunk of `entropylong.chunk_tokens`",
                found=f"{model.context_tokens} tokens of context for {self._config.min_root_tokens}"
                f" and {self._config.chunk_tokens}",
                fix="Lower one of the two",
            )
        sizes = library.document_tokens
        able = np.flatnonzero(sizes >= self._config.min_root_tokens).tolist()
        self._roots = choose_roots(library.documents, able, self._config.max_roots)
        self.statistics = Statistics()

    def units(self, rank: int, world_size: int) -> Iterator[Unit]:
        """See `Method`."""
        return single_units(self._library.documents, rank, world_size)

    def make(self, unit: Unit) -> list[Made]:
        """See `Method`."""
        document, place = unit.documents[0], unit.places[0]
        if self._library.document_tokens[place] < self._config.min_root_tokens:
            return [Made(document, "entropylong.short_root")]
        if place not in self._roots:
            return [Made(document, "entropylong.not_chosen")]
        ids = self._model.tokenizer.encode(document.text)[: self._root_tokens]
        positions, found = self.find_dependencies(ids, place)
        if not positions:
            return [Made(document, "entropylong.nothing_uncertain")]
        if not found:
            return [Made(document, "entropylong.nothing_verified")]
        sequence = self._compose(document, ids, found)
        if sequence is None:
            return [Made(document, "entropylong.no_room")]
        return [Made(document, sequence=sequence)]

    def find_dependencies(
        self, ids: Sequence[int], place: int
    ) -> tuple[list[int], list[Dependency]]:
        """Return the uncertain positions of a root, and the best verified chunk of each, if any."""
        before = self._entropies([[]], ids)[0]
        positions = uncertain_positions(before, self._words(ids), self._config)
        if not positions:
            return [], []
        wanted = self._candidates(ids, positions, place)
        if not any(wanted):
            return positions, []
        control = self._random_chunk(place)
        chunks = sorted({chunk for row in wanted for chunk in row} | {control})
        after = dict(zip(chunks, self._entropies(self._contexts(chunks), ids), strict=True))
        found = []
        for position, row in zip(positions, wanted, strict=True):
            tested = [
                Dependency(position, chunk, float(before[position]), float(after[chunk][position]))
                for chunk in [*row, control]
            ]
            verified = [one.gain > self._config.min_gain for one in tested]
            self.statistics.enter_value("verified pairs", sum(verified[:-1]), len(row))
            self.statistics.enter_value("verified random pairs (control)", verified[-1])
            self.statistics.enter_value("gain of pairs", sum(d.gain for d in tested[:-1]), len(row))
            self.statistics.enter_value("gain of random pairs (control)", tested[-1].gain)
            kept = [one for one, passes in zip(tested[:-1], verified[:-1], strict=True) if passes]
            if kept:
                found.append(max(kept, key=lambda one: (one.gain, -one.chunk)))
        self.statistics.enter_value("verified positions", len(found), len(positions))
        self._try_verbatim(ids, before, max(positions, key=lambda t: (before[t], -t)))
        return positions, found

    def _try_verbatim(self, ids: Sequence[int], before: NDArray[np.float32], position: int) -> None:
        """Measure what a verbatim copy of a position's surroundings would gain: the ceiling."""
        begin = max(0, position - self._config.chunk_tokens // 2)
        copy = ids[begin : begin + self._config.chunk_tokens]
        after = self._entropies([copy], ids)[0][position]
        self.statistics.enter_value(CEILING, 1 - float(after) / float(before[position]))

    def _candidates(self, ids: Sequence[int], positions: list[int], place: int) -> list[list[int]]:
        width, tokenizer = self._config.window_tokens, self._model.tokenizer
        queries = [tokenizer.decode(ids[max(0, t - width) : t + width + 1]) for t in positions]
        similar = self._library.similar_chunks(
            self._library.embedder.embed(queries),
            place,
            self._config.candidates,
            1e-5,
            self._config.max_similarity,
        )
        return [[chunk for chunk, _ in row] for row in similar]

    def _random_chunk(self, place: int) -> int:
        random = generator_for(self._seed, self.name, self._library.documents[place].id)
        own = self._library.chunks(place)
        # Counted round from the end of the root's own: any chunk but those.
        others = len(self._library.owner) - len(own)
        return int((own.stop + random.integers(others)) % len(self._library.owner))

    def _contexts(self, chunks: Sequence[int]) -> list[list[int]]:
        encode = self._model.tokenizer.encode
        return [encode(self._chunk_text(chunk)) for chunk in chunks]

    def _chunk_text(self, chunk: int) -> str:
        # Cut by the model's own vocabulary, whatever measures the sequences.
        own = Ruler(self._model.tokenizer, 1.0)
        return joinable(own.cut(self._library.text(chunk), self._config.chunk_tokens))

    def _entropies(
        self, contexts: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """Return the entropy at each token of the root with each context before it."""
        rows = [[*self._prefix, *context, *ids] for context in contexts]
        entropies: list[NDArray[np.float32]] = []
        for start in range(0, len(rows), _BATCH_ROWS):
            scores = self._model.score_tokens(rows[start : start + _BATCH_ROWS])
            entropies += [one.entropy[-len(ids) :] for one in scores]
        self.statistics.enter_value("tokens of a forward pass", sum(map(len, rows)), len(rows))
        return entropies

    def _words(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        decode = self._model.tokenizer.decode
        return np.array([any(c.isalnum() for c in decode([token])) for token in ids], dtype=bool)

    def _compose(
        self, document: Document, ids: Sequence[int], found: list[Dependency]
    ) -> Document | None:
        """Put verified chunks, the most useful first as long as there is room, before the root."""
        best: dict[int, float] = {}
        for one in found:
            best[one.chunk] = max(best.get(one.chunk, 0.0), one.gain)
        root = self._model.tokenizer.decode(ids).rstrip("\ufffd")
        left = self._room - self._ruler.size(root)
        kept: dict[int, str] = {}
        sizes: dict[int, int] = {}
        for chunk in sorted(best, key=lambda c: (-best[c], c)):
            text = self._chunk_text(chunk)
            size = self._ruler.size(text)
            if size <= left:
                kept[chunk], sizes[chunk] = text, size
                left -= size
        if not kept:
            return None
        random = generator_for(self._seed, self.name, "order", document.id)
        order = [sorted(kept)[k] for k in random.permutation(len(kept))]
        text = "".join(kept[chunk] for chunk in order) + root
        self._count(found, order, sizes, self._ruler.size(text))
        meta = {
            "root": document.id,
            "origin": document.source,
            "dependencies": [
                {
                    "position": one.position,
                    "document": self._library.documents[self._library.owner[one.chunk]].id,
                    "entropy": round(one.before, 4),
                    "gain": round(one.gain, 4),
                }
                for one in found
                if one.chunk in kept
            ],
        }
        return make_sequence(self.name, document.id, text, document.lang, meta)

    def _count(
        self,
        found: list[Dependency],
        order: list[int],
        sizes: dict[int, int],
        total: int,
    ) -> None:
        ends, end = {}, 0
        for chunk in order:
            end += sizes[chunk]
            ends[chunk] = end
        self.statistics.enter_sequence(total)
        for one in found:
            if one.chunk in ends:
                # Sizes of parts add up to a little more than the whole.
                later = min(total, end + one.position)
                self.statistics.enter_dependency(min(later, ends[one.chunk]), later, total)
                self.statistics.enter_value("gain of kept", one.gain)
