"""Accounts of a curation step: what came in, what went out, and the reason for everything lost.

One account for each step and task, written when the task ends; merging accounts of all tasks gives
the step's. Documents in = documents out + dropped + quarantined is asserted for each task and once
more after merging, and a step's output must be the next one's input. A document on which a step
fails is quarantined with its trace; more than 0.1% of those fail the run.

Samples are those with the smallest hash of their id, so that they are the same whatever the tasks'
order.
"""

import heapq
import itertools
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import xxhash

from fivefold.artifact import read_json
from fivefold.data.curate.verdict import Verdict
from fivefold.errors import CorruptFileError, FivefoldError

_SAMPLES = 20
_CONTEXT_CHARACTERS = 160
_MARKED_CHARACTERS = 320


class QuarantineError(FivefoldError, RuntimeError):
    """Too many documents on which a step failed."""


class EarlierError(Exception):
    """An earlier step, which keeps no account, failed on a document; holds the trace of that."""


def trace_of(error: Exception) -> str:
    """Return where a step failed on a document."""
    return "".join(traceback.format_exception(error, limit=-6))


class Sample(TypedDict):
    """A dropped document, or a span that was taken out, in its surroundings."""

    id: str
    url: str
    before: str
    marked: str
    after: str


class Poisoned(TypedDict):
    """A document on which a step failed."""

    id: str
    url: str
    trace: str


@dataclass
class Account:
    """Counts, by reason where there is one, and samples."""

    documents_in: int = 0
    documents_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    """Documents dropped."""
    edits: Counter[str] = field(default_factory=Counter)
    """Spans taken out of documents that stay."""
    edited_characters: Counter[str] = field(default_factory=Counter)
    """Characters of those spans."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """A few drops and edits of each reason."""
    quarantined: list[Poisoned] = field(default_factory=list)

    def enter(self, text: str) -> None:
        """Count a document that comes in."""
        self.documents_in += 1
        self.characters_in += len(text)

    def settle(self, document_id: str, url: str, verdict: Verdict) -> None:
        """Count what became of it."""
        if verdict.reason:
            self.drops[verdict.reason] += 1
            begin, end = verdict.span or (0, 0)
            self._sample(verdict.reason, document_id, url, verdict.text, begin, end)
            return
        self.documents_out += 1
        self.characters_out += len(verdict.text)
        for edit in verdict.edits:
            self.edits[edit.reason] += 1
            self.edited_characters[edit.reason] += edit.end - edit.begin
            self._sample(edit.reason, document_id, url, edit.removed, 0, len(edit.removed))

    def quarantine(self, document_id: str, url: str, error: Exception) -> None:
        """Enter a document on which the step failed."""
        self.quarantined.append({"id": document_id, "url": url, "trace": trace_of(error)})

    def _sample(
        self, reason: str, document_id: str, url: str, text: str, begin: int, end: int
    ) -> None:
        kept = self.samples.setdefault(reason, [])
        if len(kept) >= _SAMPLES and _rank(document_id) >= _rank(kept[-1]["id"]):
            return
        sample: Sample = {
            "id": document_id,
            "url": url,
            "before": text[max(0, begin - _CONTEXT_CHARACTERS) : begin],
            "marked": text[begin : min(end, begin + _MARKED_CHARACTERS)],
            "after": text[end : end + _CONTEXT_CHARACTERS],
        }
        self.samples[reason] = _choose([*kept, sample])

    def check(self) -> None:
        """Assert that nothing is lost without a reason."""
        lost = sum(self.drops.values()) + len(self.quarantined)
        assert self.documents_in == self.documents_out + lost, (
            f"{self.documents_in} in, {self.documents_out} out, {lost} dropped or quarantined"
        )

    def add(self, other: "Account") -> None:
        """Add another task's account."""
        for name in ("documents_in", "documents_out", "characters_in", "characters_out"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.drops.update(other.drops)
        self.edits.update(other.edits)
        self.edited_characters.update(other.edited_characters)
        self.quarantined += other.quarantined
        for reason, samples in other.samples.items():
            self.samples[reason] = _choose([*self.samples.get(reason, []), *samples])

    def to_json(self) -> dict[str, Any]:
        """Return the account as plain values, reasons in alphabetical order."""
        return {
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "characters_in": self.characters_in,
            "characters_out": self.characters_out,
            "drops": dict(sorted(self.drops.items())),
            "edits": dict(sorted(self.edits.items())),
            "edited_characters": dict(sorted(self.edited_characters.items())),
            "quarantined": sorted(self.quarantined, key=lambda poisoned: poisoned["id"]),
            "samples": dict(sorted(self.samples.items())),
        }


def _rank(document_id: str) -> int:
    return xxhash.xxh3_64_intdigest(document_id.encode())


def _choose(samples: list[Sample]) -> list[Sample]:
    return heapq.nsmallest(_SAMPLES, samples, key=lambda s: (_rank(s["id"]), s["marked"]))


def account_from_json(value: dict[str, Any]) -> Account:
    """Return the account that `Account.to_json` gave."""
    counters = {name: Counter(value[name]) for name in ("drops", "edits", "edited_characters")}
    return Account(**{**value, **counters})


def read_accounts(folder: Path, tasks: int) -> Account:
    """Return the sum of the accounts that `tasks` tasks left in a step's folder.

    Raises:
        CorruptFileError: an account is missing or cut.
    """
    whole = Account()
    for task in range(tasks):
        path = folder / f"{task:05d}.json"
        value = read_json(path)
        if value is None:
            raise CorruptFileError(
                expected=f"the account of task {task} at `{path}`",
                found="no readable file",
                fix="Remove the folder of that stage and run again",
            )
        whole.add(account_from_json(value))
    whole.check()
    return whole


def check_chain(accounts: Iterable[tuple[str, Account]], max_quarantined: float) -> None:
    """Assert that each step's output is the next one's input, and that few documents failed.

    Raises:
        QuarantineError: more than `max_quarantined` of the first step's input were quarantined.
    """
    steps = list(accounts)
    for (name, before), (next_name, after) in itertools.pairwise(steps):
        assert before.documents_out == after.documents_in, (
            f"{before.documents_out} out of {name}, {after.documents_in} into {next_name}"
        )
    poisoned = [(name, one) for name, account in steps for one in account.quarantined]
    total = steps[0][1].documents_in if steps else 0
    if len(poisoned) > max_quarantined * total:
        name, first = poisoned[0]
        raise QuarantineError(
            expected=f"at most {max_quarantined:.2%} of {total} documents to fail",
            found=f"{len(poisoned)}, the first at step `{name}`, document {first['id']} "
            f"({first['url']}): {first['trace'].strip().splitlines()[-1].rstrip('.')}",
            fix="Read the traces with `fivefold data inspect OUT --dropped-by quarantined`, then "
            "correct or leave out that input, or raise `max_quarantined`",
        )
