"""Rows for training, in an order that depends on the seed and the rows consumed alone.

The global order of rows is one sequence: the mixture chooses a source, the source's permutation
chooses the row. A batch is the next stretch of it; rank r of w takes its contiguous part. World
size, machine and the moment of a kill leave no trace, and the state is a few integers. Every row
is assembled from a memory-mapped token file through its pack, all rows of a source at once.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fivefold.data.config import MixtureConfig
from fivefold.data.mixture import Mixture
from fivefold.data.order import permuted_index
from fivefold.data.packed_source import PackedSource, open_derived, open_sources, read_summary
from fivefold.errors import ConfigError, CorruptFileError, MismatchError

_STATE_VERSION = 2


@dataclass(frozen=True)
class Rows:
    """Some rows of `context_tokens` + 1 places; inputs are [:, :-1], labels [:, 1:].

    A loss is defined where `document[:, i] == document[:, i + 1] >= 0`, and `weight[:, i + 1] > 0`
    where there are weights.
    """

    ids: np.ndarray
    """int32 [rows, context + 1]; the pad id where there is no token."""
    document: np.ndarray
    """Number of the piece within its row, -1 for padding: int32 [rows, context + 1]."""
    positions: np.ndarray
    """Place within the piece, from 0; 0 for padding: int32 [rows, context + 1]."""
    source: np.ndarray
    """Index into the loader's `sources`: int16 [rows]."""
    weight: np.ndarray | None = None
    """Factor of each token's loss as a label, 0 for none: float32 [rows, context + 1]; None: 1."""

    def part(self, rows: slice | np.ndarray) -> "Rows":
        """Return the rows of a slice or with these numbers."""
        weight = None if self.weight is None else self.weight[rows]
        return Rows(
            self.ids[rows], self.document[rows], self.positions[rows], self.source[rows], weight
        )


def assemble_rows(
    source: PackedSource, rows: np.ndarray, pad_id: int, source_index: int = 0
) -> Rows:
    """Assemble the rows with these numbers, in the order given."""
    pack, tokens = source.pack, source.tokens
    shape = (len(rows), pack.row_tokens)
    ids = np.full(shape, pad_id, dtype=np.int32)
    document = np.full(shape, -1, dtype=np.int32)
    positions = np.zeros(shape, dtype=np.int32)
    counts = pack.pointer[rows + 1] - pack.pointer[rows]
    piece_number, piece_row = _count_up(counts)
    piece = pack.pointer[rows][piece_row] + piece_number
    lengths = pack.length[piece].astype(np.int64)
    position, token_piece = _count_up(lengths)
    # Where each piece begins in its row: tokens of the row's pieces before it.
    before = np.cumsum(lengths) - lengths
    row_begin = before[np.cumsum(counts) - counts] if len(piece) else before
    column = (before - row_begin[piece_row])[token_piece] + position
    places = piece_row[token_piece], column
    first = tokens.starts[pack.document[piece]] + pack.start[piece]
    chosen = first[token_piece] + position
    ids[places] = tokens.ids[chosen]
    document[places] = piece_number[token_piece]
    positions[places] = position
    weight = None
    if source.weight is not None:
        weight = np.zeros(shape, dtype=np.float32)
        weight[places] = source.weight[chosen]
    return Rows(ids, document, positions, np.full(len(rows), source_index, dtype=np.int16), weight)


def assemble_all(sources: Sequence[PackedSource], pad_id: int) -> Rows:
    """Assemble every row of at least one source, in a fixed order; all or none have weights."""
    parts = [
        assemble_rows(source, np.arange(source.pack.rows), pad_id, index)
        for index, source in enumerate(sources)
    ]
    weights = [part.weight for part in parts if part.weight is not None]
    assert len(weights) in (0, len(parts)), "sources with and without weights"
    ids, document, positions, number = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "document", "positions", "source")
    )
    return Rows(ids, document, positions, number, np.concatenate(weights) if weights else None)


def _hash(values: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(values).data)


def _count_up(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 0..count-1 for each count in turn, and which count each belongs to."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts), owner


@dataclass(frozen=True)
class Given:
    """What a loader has given of one source."""

    name: str
    rows: int
    epochs: float
    """Passes over the source."""
    tokens: int
    """Tokens in those rows, counted as so many passes."""


class RowLoader:
    """The stream of training rows, endless unless the mixture caps all of its sources."""

    def __init__(
        self,
        sources: Sequence[PackedSource],
        *,
        pad_id: int,
        seed: int,
        mixture: MixtureConfig | None = None,
    ) -> None:
        """Stream from `sources`, which share a context length and a tokenizer.

        Raises:
            MismatchError: sources of different contexts or tokenizers.
            ConfigError: no source, or impossible mixture weights.
        """
        assert len({source.weight is None for source in sources}) < 2, "weights of all or none"
        contexts = {source.pack.context_tokens for source in sources}
        tokenizers = {source.tokens.manifest.tokenizer_hash for source in sources}
        if len(contexts) > 1 or len(tokenizers) > 1:
            raise MismatchError(
                expected="sources of one context length and one tokenizer",
                found=f"contexts {sorted(contexts)}, tokenizers {sorted(tokenizers)}",
                fix="Make the token files in one run of the stage `tokens`",
            )
        usable = sorted((s for s in sources if s.pack.rows), key=lambda source: source.name)
        if not usable:
            raise ConfigError(
                expected="at least one source with a row",
                found="none",
                fix="Add text to the corpus",
            )
        self._sources = usable
        self._pad_id = pad_id
        self._seed = seed
        self._config = mixture or MixtureConfig()
        self._mixture = self._start_mixture()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in the order that `Rows.source` counts."""
        return tuple(source.name for source in self._sources)

    @property
    def context_tokens(self) -> int:
        """Tokens that one row predicts at most."""
        return self._sources[0].pack.context_tokens

    @property
    def consumed_rows(self) -> int:
        """Rows given so far, to all ranks together."""
        return self._mixture.rows

    @property
    def account(self) -> list[Given]:
        """What has been given of each source so far, in the order of `sources`."""
        found = []
        for source, rows in zip(self._sources, self._mixture.given.tolist(), strict=True):
            epochs = rows / source.pack.rows
            found.append(Given(source.name, rows, epochs, round(epochs * source.pack_tokens)))
        return found

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each source so far."""
        return {given.name: given.epochs for given in self.account}

    def next_rows(self, count: int, rank: int = 0, world_size: int = 1) -> Rows:
        """Return this rank's part of the next `count` rows; all ranks must ask for the same count.

        Raises:
            ConfigError: `count` does not divide among the ranks, or every source is at its cap.
        """
        if count % world_size:
            raise ConfigError(
                expected=f"a batch that divides among {world_size} ranks",
                found=f"{count} rows",
                fix="Change the batch size or the number of processes",
            )
        source, number = self._advance(count)
        share = count // world_size
        mine = slice(rank * share, (rank + 1) * share)
        return self._assemble(source[mine], number[mine])

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream and what it is a stream of; plain JSON values."""
        return {
            **self._identity,
            "credits": self._mixture.credits.tolist(),
            "rows_given": self._mixture.given.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place.

        Raises:
            MismatchError: the state belongs to other tokens, another tokenizer, context or seed.
            CorruptFileError: the state lacks a field.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise MismatchError(
                    expected=f"a loader state with `{name}` {value!r}",
                    found=repr(state.get(name)),
                    fix="Resume with the data and seed that the checkpoint was made with, "
                    "or start the stage anew with `--fresh`",
                )
        try:
            mixture = self._start_mixture()
            mixture.credits = np.array(state["credits"], dtype=np.float64)
            mixture.given = np.array(state["rows_given"], dtype=np.int64)
        except KeyError as error:
            raise CorruptFileError(
                expected=f"a loader state with {error}",
                found=f"the fields {', '.join(state)}",
                fix="Resume from another checkpoint",
            ) from error
        self._mixture = mixture

    def _start_mixture(self) -> Mixture:
        return Mixture(
            self._config,
            {s.name: s.natural_tokens for s in self._sources},
            self.context_tokens,
            pass_rows={s.name: s.pack.rows for s in self._sources},
            groups={s.name: s.group for s in self._sources if s.group},
        )

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What a state must share with this stream, besides the place."""
        return {
            "version": _STATE_VERSION,
            "seed": self._seed,
            "context_tokens": self.context_tokens,
            "tokenizer": self._sources[0].tokens.manifest.tokenizer_hash,
            "tokens": {
                source.name: f"{source.tokens.manifest.sha256[:16]}/{source.pack.content_hash}"
                + ("" if source.weight is None else f"/{_hash(source.weight)}")
                for source in self._sources
            },
            "natural_tokens": {source.name: source.natural_tokens for source in self._sources},
            "mixture": self._config.model_dump(mode="json"),
        }

    def _advance(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source and its running row number for the next rows: int64 [count] each."""
        before = self._mixture.given.copy()
        source = self._mixture.choose(count)
        number = np.empty(count, dtype=np.int64)
        for index in range(len(self._sources)):
            places = np.flatnonzero(source == index)
            number[places] = before[index] + np.arange(len(places))
        return source, number

    def _assemble(self, source: np.ndarray, number: np.ndarray) -> Rows:
        shape = (len(source), self.context_tokens + 1)
        ids, document, positions = (np.empty(shape, dtype=np.int32) for _ in range(3))
        weight = None
        if self._sources[0].weight is not None:
            weight = np.empty(shape, dtype=np.float32)
        for index, packed in enumerate(self._sources):
            places = np.flatnonzero(source == index)
            if len(places):
                part = assemble_rows(
                    packed, self._row_numbers(packed, number[places]), self._pad_id
                )
                ids[places], document[places] = part.ids, part.document
                positions[places] = part.positions
                if weight is not None:
                    weight[places] = part.weight
        return Rows(ids, document, positions, source.astype(np.int16), weight)

    def _row_numbers(self, packed: PackedSource, number: np.ndarray) -> np.ndarray:
        """Map running numbers to rows of the pack, epoch by epoch."""
        rows = packed.pack.rows
        seed = xxhash.xxh3_64_intdigest(f"{self._seed} {packed.name}".encode())
        epoch, place = np.divmod(number, rows)
        result = np.empty_like(number)
        for current in np.unique(epoch):
            here = epoch == current
            result[here] = permuted_index(place[here], rows, seed, int(current))
        return result


def read_heldout_rows(directory: Path, context_tokens: int, pad_id: int) -> Rows:
    """Return all held-out rows of a TokensStage's directory, in a fixed order.

    `Rows.source` counts the held-out sources of `tokens.json` in their order.
    """
    sources = open_sources(directory, context_tokens, "heldout")
    if not sources:
        raise ConfigError(
            expected=f"held-out documents in `{directory}`",
            found="none",
            fix="Raise `corpus.heldout_bytes` or add text to the corpus",
        )
    return assemble_all(sources, pad_id)


def open_loader(
    directory: Path,
    context_tokens: int,
    *,
    seed: int,
    mixture: MixtureConfig | None = None,
    verify: bool = True,
) -> RowLoader:
    """Open the training rows that a TokensStage wrote into `directory`.

    Without `mixture`, the one that the stage was configured with applies. `verify` hashes all
    token files first, at about a second a gigabyte.

    Raises:
        ConfigError: the mixture has a share of `long` or `planted`, of which there are no rows.
        MissingFileError, CorruptFileError, MismatchError: as in `open_sources`.
    """
    sources = open_sources(directory, context_tokens, verify=verify)
    summary = read_summary(directory)
    mixture = mixture or MixtureConfig.model_validate(summary["mixture"])
    for group, share in mixture.shares.items():
        if share:
            sources += open_derived(directory, context_tokens, group, verify=verify)
    return RowLoader(sources, pad_id=int(summary["pad_id"]), seed=seed, mixture=mixture)
