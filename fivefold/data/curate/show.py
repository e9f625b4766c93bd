"""What `fivefold data stats` and `inspect` show of a finished run, out of its files alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fivefold.artifact import read_json
from fivefold.data.curate.account import Account, Poisoned, Sample, account_from_json
from fivefold.data.curate.page import EDITS, looked_for, reason_rows
from fivefold.data.curate.run import BENCHMARKS_FILE
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

_BYTES_PER_TOKEN = 4
"""Of English with a vocabulary of 32 thousand, about; only for what is shown."""


def read_run(out: Path) -> tuple[dict[str, Account], dict]:
    """Return the accounts and the summary of a finished run.

    Raises:
        MissingFileError: there is none.
        CorruptFileError: its files are not ours.
    """
    accounts, summary = read_json(out / "accounts.json"), read_json(out / "summary.json")
    if accounts is None or summary is None:
        raise MissingFileError(
            expected=f"a finished run of `fivefold data run` in `{out}`",
            found="no accounts.json and summary.json",
            fix=f"Run or finish it: `fivefold data run RECIPE --out {out}`",
        )
    try:
        return {name: account_from_json(one) for name, one in accounts.items()}, summary
    except (KeyError, TypeError) as error:
        raise CorruptFileError(
            expected=f"the accounts of a run in `{out / 'accounts.json'}`",
            found=str(error),
            fix="Run it again",
        ) from error


def show_stats(out: Path, console: Console) -> None:
    """Print the funnel, the reasons, languages and lengths of a run.

    Raises:
        MissingFileError: there is no finished run.
    """
    accounts, summary = read_run(out)
    funnel = Table("step", "in", "out", "kept, %", "characters out, M", title="Funnel")
    for name, account in accounts.items():
        share = 100 * account.documents_out / max(1, account.documents_in)
        cells = f"{account.documents_in:,}", f"{account.documents_out:,}", f"{share:.1f}"
        funnel.add_row(name, *cells, f"{account.characters_out / 1e6:.3f}")
    reasons = Table(
        "step",
        "reason",
        "count",
        "share, %",
        title="Dropped and edited",
        caption="share: of the documents that came into the step; of edits, of their characters",
    )
    for step, reason, count, share in reason_rows(accounts):
        reasons.add_row(step, reason, f"{count:,}", f"{share:.2f}")
    for table in (funnel, reasons):
        for column in table.columns[1 if table is funnel else 2 :]:
            column.justify = "right"
        console.print(table)
    if (tiers := read_json(out / "tiers.json")) is not None:
        console.print(_tier_table(tiers))
    for name, title in (
        ("languages", "languages"),
        ("sources", "sources"),
        ("lengths", "lengths in characters"),
    ):
        shown = list(summary[name].items())[:12]
        line = ", ".join(f"{key}: {count:,}" for key, count in shown) or "none"
        console.out(f"{title}: {line}", highlight=False)
    console.out(
        f"{summary['documents']:,} documents, {summary['characters'] / 1e6:.3f} M characters",
        highlight=False,
    )
    for line in describe_benchmarks(read_json(out / BENCHMARKS_FILE)):
        console.out(line, highlight=False)


def describe_benchmarks(facts: Mapping[str, Any] | None) -> list[str]:
    """Return what was and was not looked for, as lines; `facts` as in `benchmarks.json`."""
    if facts is None:
        return []
    counts, missing = facts["counts"], facts["missing"]
    if not counts and not missing:
        return ["benchmarks: none looked for; documents may hold items of them"]
    found = {name: looked_for(one) for name, one in counts.items()}
    shown = ", ".join(f"{name} {number:,}" for name, number in sorted(found.items()) if number)
    named = f" ({shown})" if shown else ""
    lines = [f"benchmarks: looked for {sum(found.values()):,} items{named}"]
    if short := {name: one["short"] for name, one in counts.items() if one["short"]}:
        named = ", ".join(f"{name} {number:,}" for name, number in sorted(short.items()))
        lines.append(f"not looked for, as ordinary text holds such few words: {named}")
    if shared := {name: one["boilerplate"] for name, one in counts.items() if one["boilerplate"]}:
        named = ", ".join(f"{name} {number:,}" for name, number in sorted(shared.items()))
        lines.append(f"not looked for, as many items share all of their words: {named}")
    if missing:
        lines.append(
            f"not in the cache, so not looked for: {', '.join(missing)}; `fivefold data get "
            "--benchmarks` fetches them, `--benchmarks FILE` names others"
        )
    return lines


def _tier_table(tiers: Mapping[str, Mapping[str, float]]) -> Table:
    """Return documents and bytes of each tier, and what its epochs make of them."""
    table = Table(
        "tier",
        "documents",
        "MB",
        "epochs",
        "MB seen",
        "M tokens seen",
        title="Tiers",
        caption=f"seen: times the epochs; a token counts as {_BYTES_PER_TOKEN} bytes",
    )
    rows = [(name, one["documents"], one["bytes"], one["epochs"]) for name, one in tiers.items()]
    for name, documents, size, epochs in rows:
        seen = size * epochs / 1e6
        cells = f"{documents:,.0f}", f"{size / 1e6:.3f}", f"{epochs:g}", f"{seen:.3f}"
        table.add_row(name, *cells, f"{seen / _BYTES_PER_TOKEN:.3f}")
    whole, seen = sum(row[2] for row in rows) / 1e6, sum(row[2] * row[3] for row in rows) / 1e6
    cells = f"{sum(row[1] for row in rows):,.0f}", f"{whole:.3f}", "", f"{seen:.3f}"
    table.add_row("all", *cells, f"{seen / _BYTES_PER_TOKEN:.3f}", style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def show_dropped(out: Path, reason: str, count: int, console: Console) -> None:
    """Print up to `count` samples of what was dropped or cut out for a reason, or a group of them.

    Raises:
        MissingFileError: there is no finished run.
        ConfigError: nothing was dropped for that reason.
    """
    accounts, _ = read_run(out)
    # As `stats` writes it.
    reason = reason.removesuffix(EDITS)
    found, traces, total, known = _samples_of(accounts, reason)
    if not total:
        raise ConfigError(
            expected=f"a reason for which something was dropped in `{out}`",
            found=repr(reason),
            fix=f"Choose among {', '.join(sorted(known)) or 'none: nothing was dropped'}",
        )
    shown = found[:count]
    console.out(
        f"{total:,} for `{reason}`; {len(shown) or len(traces[:count])} shown", style="bold"
    )
    for name, sample in shown:
        console.print(Text.assemble((f"\n{name}", "bold"), f"  {sample['url']}  {sample['id']}"))
        opening, closing = ("", "") if console.is_terminal else ("[[", "]]")
        marked = f"{opening}{sample['marked']}{closing}" if sample["marked"] else ""
        console.print(
            Text.assemble(sample["before"], (marked, "black on yellow"), sample["after"]),
            soft_wrap=True,
        )
    for poisoned in traces[:count]:
        console.print(Text.assemble(("\nquarantined", "bold"), f"  {poisoned['url']}"))
        console.out(poisoned["trace"], highlight=False)


def top_reason(accounts: Mapping[str, Account]) -> str:
    """Return the reason for which most documents were dropped; empty where none was."""
    drops = {reason: n for one in accounts.values() for reason, n in one.drops.items()}
    return max(sorted(drops), key=lambda reason: drops[reason], default="")


def _samples_of(
    accounts: Mapping[str, Account], reason: str
) -> tuple[list[tuple[str, Sample]], list[Poisoned], int, set[str]]:
    """Return samples and traces of a reason or of a group `GROUP.`, how many, and all reasons."""
    samples: list[tuple[str, Sample]] = []
    traces: list[Poisoned] = []
    total, known = 0, set()
    for account in accounts.values():
        counts = account.drops + account.edits
        known |= set(counts)
        for name in sorted(counts):
            if name == reason or name.startswith(f"{reason}."):
                total += counts[name]
                samples += [(name, sample) for sample in account.samples.get(name, [])]
        if account.quarantined:
            known.add("quarantined")
        if reason == "quarantined":
            traces += account.quarantined
            total += len(account.quarantined)
    return samples, traces, total, known
