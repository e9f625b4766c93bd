"""The held-out split: whole texts, chosen by hash, in proportion to each source.

A text's place is the hash of its id and the seed, so the choice does not depend on the order of
reading. Validation loss on them is comparable between runs with the same corpus. The parts of a
text that was cut for its length go to the same side, for the neighbour of a held-out part would
tell much about it; so do the texts of one repository. One exception: a source whose texts are all
too long for its share, a single book say, gives the last parts of one of them, so that one's own
file has a validation loss too.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import xxhash


class Part(NamedTuple):
    """What the split knows of a document."""

    source: str
    size_bytes: int
    text_id: str
    """Id of the text that it is a part of; its own where the text was not cut."""
    number: int | None = 0
    """Place among the parts of the text; None where the text cannot be divided."""


def choose_heldout(
    parts: Mapping[str, Part], total_bytes: int, largest_share: float, seed: int
) -> set[str]:
    """Choose the ids to hold out among the documents `parts`.

    Each source gives at most its share of `total_bytes`, and at most `largest_share` of itself; its
    texts are taken in hashed order, those that no longer fit are passed over. A source of one
    document gives none.
    """
    by_source: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for document_id, part in parts.items():
        by_source[part.source][part.text_id].append(document_id)
    corpus_bytes = sum(part.size_bytes for part in parts.values())
    chosen: set[str] = set()
    for texts in by_source.values():
        sizes = {
            text: sum(parts[name].size_bytes for name in names) for text, names in texts.items()
        }
        source_bytes = sum(sizes.values())
        proportional = total_bytes * source_bytes / max(1, corpus_bytes)
        allowed = left = min(proportional, largest_share * source_bytes)
        in_order = sorted(texts, key=lambda text: (_place(text, seed), text))
        for text in in_order:
            if sizes[text] <= left:
                chosen.update(texts[text])
                left -= sizes[text]
        if left == allowed:
            ends = (_last_parts(parts, texts[text], allowed) for text in in_order)
            chosen |= next((end for end in ends if end), set())
    return chosen


def _last_parts(parts: Mapping[str, Part], names: list[str], allowed_bytes: float) -> set[str]:
    """Return the parts at the end of a text that fit."""
    chosen: set[str] = set()
    numbered = [(number, name) for name in names if (number := parts[name].number) is not None]
    for _, name in sorted(numbered, key=lambda one: -one[0]):
        allowed_bytes -= parts[name].size_bytes
        if allowed_bytes < 0:
            break
        chosen.add(name)
    return chosen


def _place(text_id: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(text_id.encode(), seed=seed & (2**64 - 1))
