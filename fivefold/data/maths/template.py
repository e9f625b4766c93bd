"""Pages that a program filled in: the same skeleton again and again with other values.

A skeleton is a line with addresses, numbers, quoted strings and runs of capitalised words masked.
Two signs, both over the documents of one source: lines whose skeleton stands in a large share of
them, and documents whose whole masked texts are near-duplicates of many others' (MinHash over the
masked words, joined as in `near_duplicate`). What makes a page its own, prose and proofs, survives
masking and keeps such pages apart.
"""

# Typographic quotation marks are masked too.
# ruff: noqa: RUF001

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from fivefold.data.curate.minhash import NO_SHINGLES, text_signature
from fivefold.data.curate.near_duplicate import candidate_pairs, components
from fivefold.data.maths.config import TemplateConfig

_MASKS = (
    (re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\w+"), " url "),
    (re.compile(r"\"[^\"\n]{1,80}\"|“[^”\n]{1,80}”|‘[^’\n]{1,80}’"), " quote "),
    (re.compile(r"[+-]?\d[\d.,:/%-]*"), " 0 "),
    (re.compile(r"\b[A-Z]\w*(?:[ \t]+(?:of|the|and|de|van|von)?[ \t]*[A-Z]\w*)*"), " name "),
)
_BLANKS = re.compile(r"[ \t]+")


def skeleton(text: str) -> str:
    """Return a text with its values masked, line by line."""
    for pattern, word in _MASKS:
        text = pattern.sub(word, text)
    return "\n".join(_BLANKS.sub(" ", line).strip() for line in text.split("\n"))


def line_skeletons(text: str, min_words: int) -> list[tuple[int, int, str]]:
    """Return begin, end and skeleton of each line of at least `min_words` words."""
    found, begin = [], 0
    for line in text.split("\n"):
        end = begin + len(line)
        if len(line.split()) >= min_words:
            found.append((begin, end, skeleton(line)))
        begin = end + 1
    return found


def line_key(source: str, masked: str) -> int:
    """Return the hash of a source's skeleton."""
    return xxhash.xxh3_64_intdigest(f"{source}\0{masked}".encode("utf-8", "replace"))


@dataclass(frozen=True)
class Outline:
    """What finding templates has to know of documents, in their order."""

    ids: list[str]
    sources: list[str]
    lines: list[NDArray[np.uint64]]
    """Distinct keys of each document's lines."""
    signatures: NDArray[np.uint32]
    """Of masked texts: [documents, bands * rows]."""


def outline_text(
    source: str, text: str, config: TemplateConfig
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Return the distinct keys of a text's lines, ascending, and its masked signature."""
    skeletons = line_skeletons(text, config.min_line_words)
    keys = sorted({line_key(source, masked) for _, _, masked in skeletons})
    return np.array(keys, dtype=np.uint64), text_signature(skeleton(text), config.minhash)


def outline(documents: Sequence[tuple[str, str, str]], config: TemplateConfig) -> Outline:
    """Return the outline of documents, each (id, source, text)."""
    parts = [outline_text(source, text, config) for _, source, text in documents]
    names, sources = ([one[place] for one in documents] for place in (0, 1))
    return join_outline(names, sources, parts, config)


def join_outline(
    names: list[str],
    sources: list[str],
    parts: Sequence[tuple[NDArray[np.uint64], NDArray[np.uint32]]],
    config: TemplateConfig,
) -> Outline:
    """Return the outline of documents from what `outline_text` gave of each."""
    width = config.minhash.bands * config.minhash.rows
    signed = np.array([one for _, one in parts], dtype=np.uint32).reshape(len(parts), width)
    return Outline(names, sources, [lines for lines, _ in parts], signed)


def no_outline(config: TemplateConfig) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Return what stands for a text that could not be read: no lines, and like no other text."""
    width = config.minhash.bands * config.minhash.rows
    return np.zeros(0, np.uint64), np.full(width, NO_SHINGLES, dtype=np.uint32)


@dataclass(frozen=True)
class Templates:
    """What was found over all documents."""

    lines: NDArray[np.uint64]
    """Keys of lines that are templates, ascending."""
    dropped: frozenset[str]
    """Ids of documents that are copies of a skeleton beyond those kept."""


def find_templates(whole: Outline, config: TemplateConfig) -> Templates:
    """Return the template lines, and the documents of large clusters beyond the kept ones."""
    sizes: dict[str, int] = {}
    for source in whole.sources:
        sizes[source] = sizes.get(source, 0) + 1
    keys = [
        _frequent(source, size, whole, config)
        for source, size in sizes.items()
        if size >= config.min_documents
    ]
    lines = np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.uint64)
    return Templates(lines, _cluster_members(whole, config))


def _frequent(source: str, size: int, whole: Outline, config: TemplateConfig) -> NDArray[np.uint64]:
    mine = [lines for lines, own in zip(whole.lines, whole.sources, strict=True) if own == source]
    values, counts = np.unique(np.concatenate(mine), return_counts=True)
    return values[counts >= max(config.min_line_documents, config.line_share * size)]


def _cluster_members(whole: Outline, config: TemplateConfig) -> frozenset[str]:
    worded = np.flatnonzero((whole.signatures != NO_SHINGLES).any(axis=1))
    # Rows in the order of ids, so that it is the same documents that stay whatever their files.
    rows = worded[np.argsort([whole.ids[row] for row in worded], kind="stable")]
    labels = components(len(rows), candidate_pairs(whole.signatures[rows], config.minhash.bands))
    members: dict[int, list[str]] = {}
    for label, row in zip(labels.tolist(), rows.tolist(), strict=True):
        members.setdefault(label, []).append(whole.ids[row])
    return frozenset(
        name
        for names in members.values()
        if len(names) >= config.min_cluster
        for name in names[config.kept :]
    )


def template_share(
    text: str, source: str, lines: NDArray[np.uint64], min_words: int
) -> tuple[float, tuple[int, int] | None]:
    """Return the share of a text's characters in template lines, and where the first one stands."""
    found, filled = None, 0
    for begin, end, masked in line_skeletons(text, min_words):
        key = np.uint64(line_key(source, masked))
        place = int(np.searchsorted(lines, key))
        if place < len(lines) and lines[place] == key:
            filled += end - begin
            found = found or (begin, end)
    return filled / max(1, len(text)), found
