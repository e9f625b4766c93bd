"""The held-out split: whole documents, chosen by hash, in proportion to each source.

A document's place is the hash of its id and the seed, so the choice does not depend on the order of
reading. Validation loss on them is comparable between runs with the same corpus. Surprise: the
parts of a text that was cut for its length are documents of their own, so a neighbour of a held-out
part may be in training.
"""

from collections import defaultdict
from collections.abc import Mapping

import xxhash


def choose_heldout(
    sizes: Mapping[str, tuple[str, int]], total_bytes: int, largest_share: float, seed: int
) -> set[str]:
    """Choose the ids to hold out, given the (source, bytes) of each id.

    Each source gives at most its share of `total_bytes`, and at most `largest_share` of itself; its
    documents are taken in hashed order, those that no longer fit are passed over. A source of one
    document gives none.
    """
    by_source: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for document_id, (source, size) in sizes.items():
        place = xxhash.xxh3_64_intdigest(document_id.encode(), seed=seed & (2**64 - 1))
        by_source[source].append((place, document_id, size))
    corpus_bytes = sum(size for _, size in sizes.values())
    chosen: set[str] = set()
    for documents in by_source.values():
        source_bytes = sum(size for _, _, size in documents)
        proportional = total_bytes * source_bytes / max(1, corpus_bytes)
        left = min(proportional, largest_share * source_bytes)
        for _, document_id, size in sorted(documents):
            if size <= left:
                chosen.add(document_id)
                left -= size
    return chosen
