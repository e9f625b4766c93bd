"""Accounts of conversations: what came in, what is learned, what is not and why.

For each split and source, samples = kept + dropped, asserted at the end. Error spans are the point
of it (GLM-5 report, section 3.1): they stay in the context and out of the loss, and the account
says how many tokens each reason takes.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from fivefold.artifact import write_json
from fivefold.data.conversation_sample import TrainingSample
from fivefold.text.tokenizer import Tokenizer

TOO_LONG = "longer than the context"
NOTHING_LEARNED = "no token learned"
_SHOWN_PER_SOURCE = 2
_SHOWN_CHARACTERS = 4000


@dataclass
class Account:
    """Counts of one source in one split."""

    conversations: int = 0
    samples: int = 0
    kept: int = 0
    """Samples in rows."""
    tokens: int = 0
    """Tokens of kept samples."""
    learned_tokens: int = 0
    """Labels among them."""
    excluded_tokens: Counter[str] = field(default_factory=Counter)
    """The assistant's tokens in kept samples that are no labels, by reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Samples left out, by reason."""


@dataclass
class ConversationLedger:
    """Accounts by split and source."""

    accounts: dict[tuple[str, str], Account] = field(default_factory=lambda: defaultdict(Account))
    shown: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Marked texts of the first samples of each source, with and without exclusions."""
    dropped_places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Where the first few dropped samples of each reason come from."""

    def drop(self, account: Account, reason: str, place: str) -> None:
        """Count a sample that is left out."""
        account.dropped[reason] += 1
        if len(self.dropped_places[reason]) < 5:
            self.dropped_places[reason].append(place)

    def keep(self, account: Account, sample: TrainingSample) -> None:
        """Count a sample that stays."""
        account.kept += 1
        account.tokens += len(sample.ids)
        account.learned_tokens += sample.learned_tokens
        for reason, is_excluded in sample.excluded.items():
            account.excluded_tokens[reason] += int(is_excluded.sum())

    def show(self, source: str, sample: TrainingSample, tokenizer: Tokenizer) -> None:
        """Remember what a sample looks like, if it is among the first of its kind."""
        kind = f"{source}, with exclusions" if sample.excluded else source
        if len(self.shown[kind]) < _SHOWN_PER_SOURCE:
            text = mark_text(sample, tokenizer)
            cut = text[:_SHOWN_CHARACTERS] + " ..."
            self.shown[kind].append(cut if len(text) > _SHOWN_CHARACTERS else text)

    def check(self) -> None:
        """Assert that every sample is accounted for."""
        for (split, source), account in self.accounts.items():
            whole = account.kept + sum(account.dropped.values())
            assert account.samples == whole, f"{split} samples of {source} lost without reason"

    def to_json(self) -> dict[str, Any]:
        """Return the accounts as plain values."""
        return {
            "sources": [
                {"split": split, "source": source, **vars(account)}
                for (split, source), account in sorted(self.accounts.items())
            ],
            "dropped_places": dict(self.dropped_places),
        }


def mark_text(sample: TrainingSample, tokenizer: Tokenizer) -> str:
    """Return the sample's text with learned parts in «» and excluded ones in ⟦reason: ⟧."""
    reasons = [
        ", ".join(r for r, mask in sample.excluded.items() if mask[place])
        for place in range(len(sample.ids))
    ]
    kinds = [
        "«" if learned else reason
        for learned, reason in zip(sample.is_learned, reasons, strict=True)
    ]
    text = []
    for kind, places in groupby(range(len(kinds)), key=kinds.__getitem__):
        piece = tokenizer.decode(sample.ids[list(places)].tolist())
        marks = {"«": ("«", "»"), "": ("", "")}.get(kind, (f"⟦{kind}: ", "⟧"))
        text.append(marks[0] + piece + marks[1])
    return "".join(text)


def conversation_page(page: Path, ledger: ConversationLedger) -> None:
    """Write the report's blocks: the accounts and marked samples."""
    rows = [
        [
            source,
            split,
            account.conversations,
            account.kept,
            account.tokens,
            account.learned_tokens,
            _spell(account.excluded_tokens),
            _spell(account.dropped),
        ]
        for (split, source), account in sorted(ledger.accounts.items())
    ]
    table = {
        "kind": "table",
        "title": "Conversations and what of them is learned",
        "note": "A conversation is one sample, or several where a user's message drops thinking. "
        "Excluded tokens stay in the context and out of the loss; dropped samples are left out "
        "whole.",
        "columns": [
            "source",
            "split",
            "conversations",
            "samples",
            "tokens",
            "loss tokens",
            "excluded tokens by reason",
            "samples dropped by reason",
        ],
        "rows": rows,
    }
    write_json(page / "02_conversations.json", table)
    shown = [f"[{kind}]\n{text}" for kind in sorted(ledger.shown) for text in ledger.shown[kind]]
    block = {
        "kind": "text",
        "title": "Conversations as training sees them",
        "note": "«learned by the assistant», ⟦reason: excluded from the loss⟧, the rest is read.",
        "text": "\n\n".join(shown),
    }
    write_json(page / "03_conversation_samples.json", block)


def _spell(counts: Counter[str]) -> str:
    return ", ".join(f"{reason}: {n:,}" for reason, n in counts.most_common()) or "none"
