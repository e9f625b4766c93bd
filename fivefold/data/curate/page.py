"""Blocks of the report that show what curation did: funnel, reasons, languages, dropped samples."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fivefold.data.curate.account import Account, Sample
from fivefold.data.page import write_block

if TYPE_CHECKING:
    from fivefold.data.curate.summary import Summary

EDITS = " (edits)"
"""What follows a reason in tables where it did not cost the document."""
_SAMPLES_PER_REASON = 2
_MOST_LANGUAGES, _MOST_SOURCES = 20, 20
_BESIDE = ("issues", "issue_benchmarks")
"""Steps that no file of the recipe goes through: they judge sequences of their own."""


def curation_page(
    folder: Path,
    accounts: Mapping[str, Account],
    summary: "Summary",
    tiers: Mapping[str, Mapping[str, float]],
) -> None:
    """Write the blocks of a finished run of one recipe into `folder`; `tiers` as in `tiers.json`.

    A recipe whose steps do not each read what the one before left is no chain.
    """
    steps = [one for name, one in accounts.items() if name not in _BESIDE]
    is_chain = all(one.documents_out == after.documents_in for one, after in pairwise(steps))
    recipe_blocks(folder, accounts, is_chain=is_chain)
    corpus_blocks(folder, summary, tiers)
    write_block(
        folder,
        "10_sources",
        "bars",
        "Sources",
        "Documents that stayed, by source.",
        x_label="source",
        y_label="documents",
        bars=_bars(list(summary.to_json()["sources"].items())[:_MOST_SOURCES]),
    )


def recipe_blocks(
    folder: Path,
    accounts: Mapping[str, Account],
    recipe: str = "",
    number: int = 0,
    *,
    is_chain: bool = True,
) -> None:
    """Write a recipe's funnel, reasons and dropped samples; `number` is its place on the page.

    Without a chain every step sees all documents, and there is no funnel but a choice for each.
    """
    first = next(iter(accounts.values()))
    title, suffix = (f"{recipe}: ", f"_{recipe}") if recipe else ("", "")
    whole = {name: one for name, one in accounts.items() if name not in _BESIDE}
    steps = {name if not is_chain else f"after {name}": one for name, one in whole.items()}
    write_block(
        folder,
        f"0{number}1_funnel{suffix}",
        "bars",
        f"{title}{'documents left after each step' if is_chain else 'documents used'}",
        "What comes in is kept, dropped for a reason, or quarantined with a trace.",
        x_label="step",
        y_label="documents",
        bars=[
            {"name": "documents in", "value": first.documents_in},
            *({"name": name, "value": one.documents_out} for name, one in steps.items()),
        ],
    )
    write_block(
        folder,
        f"0{number}2_reasons{suffix}",
        "table",
        f"{title}what was dropped, and why",
        "The share is of the documents that came into that step; of edits, their characters.",
        columns=["step", "reason", "count", "share, %"],
        rows=reason_rows(accounts),
    )
    write_block(
        folder,
        f"5{number}_dropped{suffix}",
        "samples",
        f"{title}dropped, as it read",
        "A few documents or spans for each reason; the rule's span stands between brackets.",
        samples=[
            {"label": reason, "prompt": f"{sample['url']} ", "text": mark(sample)}
            for account in accounts.values()
            for reason, samples in sorted(account.samples.items())
            for sample in samples[:_SAMPLES_PER_REASON]
        ],
    )


def corpus_blocks(
    folder: Path, summary: "Summary", tiers: Mapping[str, Mapping[str, float]]
) -> None:
    """Write what the documents that stayed are: languages, lengths, tiers."""
    facts = summary.to_json()
    write_block(
        folder,
        "12_languages",
        "bars",
        "Languages",
        "Documents that stayed, by language.",
        x_label="language",
        y_label="documents",
        bars=_bars(list(facts["languages"].items())[:_MOST_LANGUAGES]),
    )
    write_block(
        folder,
        "30_lengths",
        "bars",
        "Document lengths",
        "Characters of a document that stayed.",
        x_label="characters",
        y_label="documents",
        bars=_bars(list(facts["lengths"].items())),
    )
    if tiers:
        write_block(
            folder,
            "14_tiers",
            "table",
            "Tiers of quality",
            "Training text by tier; epochs are how often the recipe wants it seen.",
            columns=["tier", "documents", "MB", "epochs"],
            rows=[
                [name, one["documents"], round(one["bytes"] / 1e6, 3), one["epochs"]]
                for name, one in tiers.items()
            ],
        )


def benchmark_block(folder: Path, facts: Mapping[str, Any] | None) -> None:
    """Write which benchmarks were looked for; `facts` as in `benchmarks.json`."""
    if not facts or not (facts["counts"] or facts["missing"]):
        return
    note = "Items of few words stand in ordinary texts, and runs that many items share are nobody's"
    note += ": neither is looked for."
    if facts["missing"]:
        note += f" Not in the cache, so not looked for: {', '.join(facts['missing'])}."
    write_block(
        folder,
        "16_benchmarks",
        "table",
        "Benchmarks that no document may hold",
        note,
        columns=["benchmark", "items", "looked for", "too short", "shared by many"],
        rows=[
            [name, one["items"], looked_for(one), one["short"], one["boilerplate"]]
            for name, one in sorted(facts["counts"].items())
        ],
    )


def looked_for(counts: Mapping[str, int]) -> int:
    """Return how many items of a benchmark are looked for."""
    return counts["items"] - counts["short"] - counts["boilerplate"]


def _bars(counts: list[tuple[str, int]]) -> list[dict[str, str | int]]:
    return [{"name": name, "value": count} for name, count in counts]


def reason_rows(accounts: Mapping[str, Account]) -> list[list[Any]]:
    """Return step, reason, count and share in percent; the largest of each step first."""
    rows: list[list[Any]] = []
    for step, account in accounts.items():
        lost = {**account.drops}
        if account.quarantined:
            lost["quarantined"] = len(account.quarantined)
        total = max(1, account.documents_in)
        for reason, count in sorted(lost.items(), key=lambda item: (-item[1], item[0])):
            rows.append([step, reason, count, round(100 * count / total, 2)])
        characters = max(1, account.characters_in)
        for reason, count in sorted(account.edits.items(), key=lambda item: (-item[1], item[0])):
            share = round(100 * account.edited_characters[reason] / characters, 2)
            rows.append([step, f"{reason}{EDITS}", count, share])
    return rows


def mark(sample: Sample) -> str:
    """Return a sample as one text, what the rule found between brackets."""
    marked = f"[[{sample['marked']}]]" if sample["marked"] else ""
    return f"{sample['before']}{marked}{sample['after']}"
