"""Accounts of a corpus: documents read, kept and dropped, with a reason for every drop.

Nothing disappears silently: for each source, read = kept + all drops, asserted at the end. A few
samples of each reason are kept, because a number alone does not tell a wrong filter from bad text.
"""

from collections import Counter
from dataclasses import dataclass, field

from fivefold.data.document import Document

_SAMPLES = 3
_SAMPLE_CHARACTERS = 160


@dataclass
class Ledger:
    """Counts by source and reason."""

    read: Counter[str] = field(default_factory=Counter)
    """Documents that came in, by source."""
    kept: Counter[str] = field(default_factory=Counter)
    """Documents that came out, by source."""
    kept_bytes: Counter[str] = field(default_factory=Counter)
    """UTF-8 bytes that came out, by source."""
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Documents dropped, by source and reason."""
    replaced: Counter[str] = field(default_factory=Counter)
    """Undecodable byte sequences that became U+FFFD in kept documents, by source."""
    full: set[str] = field(default_factory=set)
    """Sources that were not read to their end, because they had given enough."""
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """The first few dropped documents, by reason."""

    def drop(self, document: Document, reason: str) -> None:
        """Count a drop and perhaps keep a sample of it."""
        self.drops[document.source, reason] += 1
        kept = self.samples.setdefault(reason, [])
        if len(kept) < _SAMPLES:
            kept.append({"url": document.url, "text": document.text[:_SAMPLE_CHARACTERS]})

    def keep(self, document: Document, size_bytes: int) -> None:
        """Count a document that stays."""
        self.kept[document.source] += 1
        self.kept_bytes[document.source] += size_bytes
        self.replaced[document.source] += document.text.count("\ufffd")

    def check(self) -> None:
        """Assert that every document read is accounted for."""
        for source, read in self.read.items():
            dropped = sum(n for (name, _), n in self.drops.items() if name == source)
            assert read == self.kept[source] + dropped, f"documents of {source} lost without reason"

    def to_json(self) -> dict:
        """Return the accounts as plain values, by source and by reason."""
        by_source: dict[str, dict[str, int]] = {source: {} for source in self.read}
        for (source, reason), count in sorted(self.drops.items()):
            by_source[source][reason] = count
        return {
            "documents_read": sum(self.read.values()),
            "documents_kept": sum(self.kept.values()),
            "sources": {
                source: {"read": read, "kept": self.kept[source], "dropped": by_source[source]}
                for source, read in self.read.items()
            },
            "full": sorted(self.full),
            "samples": self.samples,
        }
