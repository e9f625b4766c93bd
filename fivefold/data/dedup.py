"""Exact de-duplication: the same words in the same order are the same document.

Texts are compared by the xxh3-128 of their NFC form with white space collapsed. Which copy stays
does not depend on the order of reading: the one with the smallest id. Near-duplicates need MinHash
and are not looked for here.
"""

import unicodedata

import xxhash


def text_fingerprint(text: str) -> bytes:
    """Return 16 bytes that are equal for texts that differ in white space only."""
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    return xxhash.xxh3_128_digest(normal.encode("utf-8", errors="replace"))


def duplicate_ids(fingerprints: dict[str, bytes]) -> set[str]:
    """Return the ids to drop, given each id's fingerprint: all but the smallest of each text."""
    kept: dict[bytes, str] = {}
    for document_id, fingerprint in fingerprints.items():
        kept[fingerprint] = min(kept.get(fingerprint, document_id), document_id)
    return {
        document_id
        for document_id, fingerprint in fingerprints.items()
        if kept[fingerprint] != document_id
    }
