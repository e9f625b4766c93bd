"""Long documents in parts: where they are cut, which parts are scored, how the scores are joined.

Parts end at blank lines, never inside a fenced code block; a display formula has no blank line.
Lists of references and indexes are not scored. A document's score, from the scores s of its parts
with weights w (characters): T the mean without the worst `trimmed` of the weight, sigma the
standard deviation of all, Q the lower quartile; score = (1 - c)(T - l sigma) + c Q, with c
`coverage` and l `spread_penalty`, and at least the lowest s. So one part's score is the document's,
the order of the parts does not matter, and a good head does not carry a bad rest.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fivefold.data.long.chunk import group
from fivefold.data.long.scorer import Scorer
from fivefold.data.maths.config import ChunkConfig

_PARAGRAPH = re.compile(r"(?:(?!\n[ \t]*\n).)+(?:\n[ \t]*)*\n?|\n+", re.DOTALL)
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_REFERENCE_HEAD = re.compile(
    r"\s*(?:references|bibliography|works cited|further reading|index|see also|参考文献)"
    r"\s*[#¶:]?\s*\n",
    re.IGNORECASE,
)
_REFERENCE_LINE = re.compile(r"^\s*(?:\[\w{1,12}\]|[•*-]?\s*\d{1,3}[.)])\s.*\b(?:1[89]|20)\d\d\b")
_TITLE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Part:
    """A run of characters of a document, and its score once it has one."""

    begin: int
    end: int
    score: float = float("nan")


def cut_parts(text: str, max_characters: int) -> list[tuple[int, int]]:
    """Return begin and end of the parts that may be scored, in order; one at least."""
    pieces = _whole_blocks(_PARAGRAPH.findall(text))
    chunks = group(pieces, [len(piece) for piece in pieces], max_characters)
    spans = [(chunk.begin, chunk.end) for chunk in chunks]
    told = [(a, b) for a, b in spans if text[a:b].strip() and not is_reference_list(text[a:b])]
    return told or spans[:1]


def _whole_blocks(paragraphs: Sequence[str]) -> list[str]:
    """Join the paragraphs of a fenced block; an unclosed one ends with the document."""
    blocks: list[str] = []
    is_open = False
    for paragraph in paragraphs:
        if is_open:
            blocks[-1] += paragraph
        else:
            blocks.append(paragraph)
        is_open ^= len(_FENCE.findall(paragraph)) % 2 == 1
    return blocks


def is_reference_list(text: str) -> bool:
    """Return whether a part is a list of references or an index."""
    if _REFERENCE_HEAD.match(text):
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) >= 5 and sum(map(bool, map(_REFERENCE_LINE.match, lines))) > 0.6 * len(lines)


def choose_parts(count: int, most: int) -> list[int]:
    """Return which of `count` parts to score: all, or the first, the last and evenly between."""
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def aggregate(scores: Sequence[float], weights: Sequence[float], config: ChunkConfig) -> float:
    """Return a document's score; see the module docstring."""
    order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
    s = np.asarray(scores, dtype=np.float64)[order]
    w = np.asarray(weights, dtype=np.float64)[order]
    w = w / w.sum()
    ends = np.cumsum(w)
    left = np.clip(ends - config.trimmed, 0, w)
    mean = float((s * left).sum() / left.sum())
    quartile = float(s[min(int(np.searchsorted(ends, 0.25)), len(s) - 1)])
    steady = mean - config.spread_penalty * deviation(s, w)
    joined = (1 - config.coverage) * steady + config.coverage * quartile
    return max(joined, float(s[0]))


def deviation(scores: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the weighted standard deviation."""
    share = weights / weights.sum()
    mean = (scores * share).sum()
    return float(np.sqrt((share * (scores - mean) ** 2).sum()))


def score_parts(text: str, title: str, scorer: Scorer, config: ChunkConfig) -> list[Part]:
    """Return the parts that were scored; a part that the scorer failed on has NaN.

    Where the scores differ much, as many parts again are scored, once.
    """
    spans = cut_parts(text, config.chunk_characters)
    head = f"{title[:_TITLE_CHARACTERS]}\n\n" if title and len(spans) > 1 else ""
    ask = _asker(text, spans, head, scorer)
    parts = ask(choose_parts(len(spans), config.max_chunks))
    known = [part for part in parts.values() if part.score == part.score]
    if known and len(parts) < len(spans):
        weights = np.array([part.end - part.begin for part in known], dtype=np.float64)
        if deviation(np.array([part.score for part in known]), weights) > config.restless:
            rest = [number for number in range(len(spans)) if number not in parts]
            parts |= ask([rest[place] for place in choose_parts(len(rest), config.max_chunks)])
    return [parts[number] for number in sorted(parts)]


def _asker(
    text: str, spans: Sequence[tuple[int, int]], head: str, scorer: Scorer
) -> Callable[[list[int]], dict[int, Part]]:
    def ask(numbers: list[int]) -> dict[int, Part]:
        chosen = [spans[number] for number in numbers]
        scores = scorer.score([head + text[a:b] for a, b in chosen]).tolist()
        found = zip(numbers, chosen, scores, strict=True)
        return {number: Part(a, b, score) for number, (a, b), score in found}

    return ask


def join_parts(parts: Sequence[Part], config: ChunkConfig) -> float:
    """Return the score of a document from its parts; NaN where the scorer failed on all of them."""
    known = [part for part in parts if part.score == part.score]
    if not known:
        return float("nan")
    sizes = [part.end - part.begin for part in known]
    return aggregate([part.score for part in known], sizes, config)
