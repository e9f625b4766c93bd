"""Fill in the middle: a text, or a row of ids, rearranged so that its middle comes last.

arXiv:2207.14255 (Bavarian et al.). Two cuts, uniform over all places, part prefix, middle and
suffix. PSM writes PREFIX prefix SUFFIX suffix MIDDLE middle. SPM writes, in the form that trains
together with PSM, PREFIX SUFFIX suffix MIDDLE prefix middle. Units are whatever the sequence holds:
characters before tokenisation (cuts then fall inside tokens, as they do for a user who types) or
ids.

Both are inverted by the same rule: the text is what follows PREFIX, then what follows MIDDLE, then
what follows SUFFIX; in SPM the first of these is empty. The marks are apart from the text, places
beside it (`Marked`), so that a text which spells a mark stays plain text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeVar

import xxhash

from fivefold.data.code.config import FimConfig
from fivefold.data.document import Document
from fivefold.text.tokenizer import Tokenizer

PREFIX = "<|code_prefix|>"
MIDDLE = "<|code_middle|>"
SUFFIX = "<|code_suffix|>"
"""GLM's special tokens for this."""

Order = Literal["", "psm", "spm"]
Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Parts:
    """A text in four runs, in the order in which they are written."""

    order: Order
    first: tuple[int, int]
    """Where, in the original, what follows PREFIX stands; empty in SPM."""
    second: tuple[int, int]
    """What follows SUFFIX."""
    third: tuple[int, int]
    """What follows MIDDLE."""


def cut(size: int, random: Random, spm_share: float) -> Parts:
    """Choose order and cuts for a sequence of `size` units."""
    low, high = sorted((random.randint(0, size), random.randint(0, size)))
    if random.random() < spm_share:
        return Parts("spm", (0, 0), (high, size), (0, high))
    return Parts("psm", (0, low), (high, size), (low, high))


def rearrange(sequence: Sequence[Unit], parts: Parts, marks: Sequence[Unit]) -> list[Unit]:
    """Return the units in written order, `marks` (PREFIX, SUFFIX, MIDDLE) included."""
    written: list[Unit] = []
    for mark, (begin, end) in zip(marks, (parts.first, parts.second, parts.third), strict=True):
        written += [mark, *sequence[begin:end]]
    return written


def restore(written: Sequence[Unit], places: Sequence[int]) -> list[Unit]:
    """Return the original of a rearranged sequence; `places` are those of the three marks."""
    first, second, third = places
    head, suffix, tail = (
        written[first + 1 : second],
        written[second + 1 : third],
        written[third + 1 :],
    )
    return [*head, *tail, *suffix]


@dataclass(frozen=True)
class Marked:
    """A text in which some marks are special tokens."""

    text: str
    marks: tuple[tuple[int, str], ...] = ()
    """Character at which a special token is spelled, and its spelling."""
    order: Order = ""


def fill_in_middle(text: str, key: str, config: FimConfig) -> Marked:
    """Rearrange a text, or leave it, as the hash of `key` and the seed decide; by characters."""
    random = Random(xxhash.xxh3_64_intdigest(key.encode(), seed=config.seed))
    if len(text) < config.min_characters or random.random() >= config.rate:
        return Marked(text)
    parts = cut(len(text), random, config.spm_share)
    pieces, marks, place = [], [], 0
    for mark, (begin, end) in (
        (PREFIX, parts.first),
        (SUFFIX, parts.second),
        (MIDDLE, parts.third),
    ):
        marks.append((place, mark))
        pieces += [mark, text[begin:end]]
        place += len(mark) + end - begin
    return Marked("".join(pieces), tuple(marks), parts.order)


def restore_text(marked: Marked) -> str:
    """Return the text that `fill_in_middle` was given."""
    if not marked.marks:
        return marked.text
    (first, _), (second, _), (third, _) = marked.marks
    head = marked.text[first + len(PREFIX) : second]
    suffix = marked.text[second + len(SUFFIX) : third]
    return head + marked.text[third + len(MIDDLE) :] + suffix


def marks_of(document: Document) -> list[tuple[int, str]]:
    """Return the places of special tokens in a document's text; none where `meta` has no such list.

    `meta` may be a user's, with anything under this name: only the three marks, where they are
    spelled, count.
    """
    marks = document.meta.get("marks")
    if not isinstance(marks, list):
        return []
    found = []
    for mark in marks:
        match mark:
            case [int(place), str(token)] if token in (
                PREFIX,
                SUFFIX,
                MIDDLE,
            ) and document.text.startswith(token, place):
                found.append((place, token))
            case _:
                return []
    return found


def restore_document(document: Document) -> Document:
    """Return a packed document with every middle back in its place, and without marks."""
    marks, pieces, files, place, size = marks_of(document), [], [], 0, 0
    for file in document.meta["files"]:
        begin, end = file["begin"], file["end"]
        own = tuple((at - begin, token) for at, token in marks if begin <= at < end)
        heading, text = document.text[place:begin], document.text[begin:end]
        text = restore_text(Marked(text, own))
        pieces += [heading, text]
        size += len(heading)
        files.append({**file, "order": "", "begin": size, "end": size + len(text)})
        size, place = size + len(text), end
    meta = {**document.meta, "files": files, "marks": []}
    return replace(document, text="".join([*pieces, document.text[place:]]), meta=meta)


def encode_marked(tokenizer: Tokenizer, text: str, marks: Iterable[tuple[int, str]]) -> list[int]:
    """Return the ids of a text in which the given places, and no others, are special tokens.

    `marks` are (character, spelling), as `Marked` and a packed document's `meta["marks"]` hold.
    """
    ids: list[int] = []
    place = 0
    for begin, token in sorted(marks):
        assert text.startswith(token, begin), f"{token} is not spelled at character {begin}"
        ids += [*tokenizer.encode(text[place:begin]), tokenizer.id_of(token)]
        place = begin + len(token)
    return ids + tokenizer.encode(text[place:])
