"""Packing: which pieces of which documents make up each row.

A row is R = `context_tokens` + 1 ids: inputs are its first R - 1, labels its last R - 1. A
document longer than R is cut, and each next piece begins with the last token of the piece before
it; so every token but a document's first is predicted exactly once, whatever the context.
`best_fit` (best-fit decreasing, as GLM-4.5 packs in mid-training) never splits a document that
fits; `concat` runs documents on and cuts at the context.

The result is a table over a token file: nothing is copied. Surprise: the "segment tree over free
space" is two levels of bit masks, because the lowest set bit of a Python int is found in one
instruction.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from fivefold.artifact import atomic_write
from fivefold.errors import CorruptFileError, MismatchError, MissingFileError

_WORD_BITS = 64
"""Free-space values that share one word of the bit mask."""


@dataclass(frozen=True)
class Pack:
    """Rows as a table of pieces: row r has the pieces `pointer[r]` up to `pointer[r + 1]`."""

    context_tokens: int
    pointer: np.ndarray
    """int64 [rows + 1]."""
    document: np.ndarray
    """Document of each piece: int32 [pieces]."""
    start: np.ndarray
    """First token of each piece within its document: int64 [pieces]."""
    length: np.ndarray
    """Tokens of each piece: int32 [pieces]."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.pointer) - 1

    @property
    def row_tokens(self) -> int:
        """Ids of a row: the context and one more."""
        return self.context_tokens + 1

    @property
    def utilisation(self) -> float:
        """Share of all places that hold a token."""
        return float(self.length.sum(dtype=np.int64)) / max(1, self.rows * self.row_tokens)

    @property
    def content_hash(self) -> str:
        """16 hex digits that change with any row."""
        digest = xxhash.xxh3_64()
        for array in (self.pointer, self.document, self.start, self.length):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def pack_documents(
    lengths: np.ndarray, context_tokens: int, method: Literal["best_fit", "concat"]
) -> Pack:
    """Pack documents of `lengths` tokens (int [documents]) into rows of `context_tokens` + 1 ids.

    Documents of fewer than 2 tokens predict nothing and get no place.
    """
    if method == "concat":
        return _concatenate(lengths, context_tokens)
    return _best_fit(context_tokens, *cut_documents(lengths, context_tokens))


def pack_long_pieces(lengths: np.ndarray, context_tokens: int, smallest_tokens: float) -> Pack:
    """Pack the pieces of at least `smallest_tokens` alone, best fit; none may be left.

    The end of a cut document counts as a piece: where it is short, it is left out.
    """
    document, start, length = cut_documents(lengths, context_tokens)
    kept = length >= smallest_tokens
    return _best_fit(context_tokens, document[kept], start[kept], length[kept])


def _best_fit(
    context_tokens: int, document: np.ndarray, start: np.ndarray, length: np.ndarray
) -> Pack:
    longest_first = np.argsort(-length, kind="stable")
    row = np.empty(len(length), dtype=np.int64)
    row[longest_first] = best_fit_rows(length[longest_first].tolist(), context_tokens + 1)
    return _pack_from_rows(context_tokens, row, document, start, length)


def cut_documents(
    lengths: np.ndarray, context_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into pieces of at most `context_tokens` + 1, neighbours sharing one token.

    Returns document, start and length of each piece: int64 [pieces].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    pieces = np.maximum(0, -(-(lengths - 1) // context_tokens))
    document = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = number * context_tokens
    return document, start, np.minimum(context_tokens + 1, lengths[document] - start)


def best_fit_rows(lengths: list[int], row_tokens: int) -> list[int]:
    """Return the row of each piece: the open row with the least free space that holds it.

    Given longest first, this is best-fit decreasing: at most 11/9 of the optimum plus one row.
    """
    rows_with: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    words = [0] * (row_tokens // _WORD_BITS + 1)
    summary = 0
    chosen = []
    rows = 0
    for length in lengths:
        word, bit = divmod(length, _WORD_BITS)
        candidates = words[word] >> bit
        if candidates:
            free = length + (candidates & -candidates).bit_length() - 1
        elif above := summary >> (word + 1):
            word += (above & -above).bit_length()
            free = word * _WORD_BITS + (words[word] & -words[word]).bit_length() - 1
        else:
            free = -1
        if free < 0:
            row, free = rows, row_tokens
            rows += 1
        else:
            row = rows_with[free].pop()
            if not rows_with[free]:
                words[word] &= ~(1 << (free - word * _WORD_BITS))
                if not words[word]:
                    summary &= ~(1 << word)
        chosen.append(row)
        if left := free - length:
            rows_with[left].append(row)
            word, bit = divmod(left, _WORD_BITS)
            words[word] |= 1 << bit
            summary |= 1 << word
    return chosen


def _concatenate(lengths: np.ndarray, context_tokens: int) -> Pack:
    """Cut the stream of all documents every `context_tokens`, rows sharing one token.

    Row r is the stream's tokens [r * context, r * context + context + 1); intersecting the rows
    with the documents gives the pieces.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    rows = max(0, -(-(total - 1) // context_tokens))
    first = np.arange(rows) * context_tokens
    last = np.minimum(first + context_tokens + 1, total)
    from_document = np.searchsorted(ends, first, side="right")
    to_document = np.searchsorted(ends, last - 1, side="right")
    pieces = to_document - from_document + 1
    row = np.repeat(np.arange(rows), pieces)
    number = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    document = from_document[row] + number
    begin = np.maximum(first[row], (ends - lengths)[document])
    length = np.minimum(last[row], ends[document]) - begin
    start = begin - (ends - lengths)[document]
    kept = length > 0
    return _pack_from_rows(context_tokens, row[kept], document[kept], start[kept], length[kept])


def _pack_from_rows(
    context_tokens: int,
    row: np.ndarray,
    document: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
) -> Pack:
    by_row = np.lexsort((start, document, row))
    rows = int(row.max()) + 1 if len(row) else 0
    counts = np.bincount(row, minlength=rows)
    return Pack(
        context_tokens=context_tokens,
        pointer=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        document=document[by_row].astype(np.int32),
        start=start[by_row].astype(np.int64),
        length=length[by_row].astype(np.int32),
    )


def save_pack(path: Path, pack: Pack, tokens_sha256: str) -> None:
    """Write the table as `.npz`, bound to the token file whose bytes have this hash."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            context_tokens=np.int64(pack.context_tokens),
            pointer=pack.pointer,
            document=pack.document,
            start=pack.start,
            length=pack.length,
            tokens_sha256=np.array(tokens_sha256),
        )


def load_pack(path: Path, tokens_sha256: str) -> Pack:
    """Read the table of the token file whose bytes have this hash.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: the file is cut or altered.
        MismatchError: the table was made for another token file.
    """
    if not path.is_file():
        raise MissingFileError(
            expected=f"a pack at `{path}`",
            found="no such file",
            fix="Add the context to `tokens.contexts` and run the stage `tokens` again",
        )
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            arrays = {name: file[name] for name in file.files}
        found_sha256 = str(arrays.pop("tokens_sha256"))
        pack = Pack(context_tokens=int(arrays.pop("context_tokens")), **arrays)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError) as error:
        raise CorruptFileError(
            expected=f"a pack in `{path}`",
            found=str(error),
            fix="Make the packs again: run the recipe with `--fresh --only tokens`",
        ) from error
    if found_sha256 != tokens_sha256:
        raise MismatchError(
            expected=f"a pack over the tokens {tokens_sha256[:16]} in `{path}`",
            found=f"one over {found_sha256[:16]}",
            fix="Make the packs again: run the recipe with `--fresh --only tokens`",
        )
    return pack
