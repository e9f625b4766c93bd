"""Documents to chunks: whole lines, up to a size, as NExtLong's released code groups them.

A new chunk begins with the line that would not fit any more. Chunks cover the document: their
texts, one after the other, are the document's. A line that is too long alone is cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fivefold.data.long.measure import Ruler

_PIECE_CHARACTERS = 400
"""A longer line is measured, and may be cut, in such pieces, at a space where there is one."""


class Chunk(NamedTuple):
    """A run of characters of a document."""

    begin: int
    end: int
    tokens: int


def cut_into_chunks(text: str, max_tokens: int, ruler: Ruler) -> list[Chunk]:
    """Return the chunks of a text; sizes are sums over lines, a few tokens too many at most."""
    pieces = [piece for line in text.splitlines(keepends=True) for piece in _pieces(line)]
    return group(pieces, ruler.sizes(pieces).tolist() if pieces else [], max_tokens)


def group(pieces: Sequence[str], sizes: Sequence[int], max_tokens: int) -> list[Chunk]:
    """Group neighbouring pieces greedily into chunks of at most `max_tokens`, blank ends apart."""
    chunks: list[Chunk] = []
    begin = end = tokens = 0
    for piece, size in zip(pieces, sizes, strict=True):
        # Blank lines stay with what they follow: alone they would be a chunk of nothing.
        if end > begin and tokens + size > max_tokens and piece.strip():
            chunks.append(Chunk(begin, end, tokens))
            begin, tokens = end, 0
        end += len(piece)
        tokens += size
    if end > begin:
        chunks.append(Chunk(begin, end, tokens))
    return chunks


def _pieces(line: str) -> list[str]:
    if len(line) <= _PIECE_CHARACTERS:
        return [line]
    pieces, begin = [], 0
    while len(line) - begin > _PIECE_CHARACTERS:
        space = line.rfind(" ", begin + 1, begin + _PIECE_CHARACTERS)
        end = space if space > 0 else begin + _PIECE_CHARACTERS
        pieces.append(line[begin:end])
        begin = end
    return [*pieces, line[begin:]]
