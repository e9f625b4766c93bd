"""The page of `data run`: sources, tiers, and a funnel of nothing but a chain."""

import json
from pathlib import Path

from fivefold.data.curate.account import Account
from fivefold.data.curate.page import curation_page
from fivefold.data.curate.summary import Summary
from fivefold.report.block import draw_block

TIERS = {"top": {"documents": 2, "bytes": 3_000_000, "epochs": 3.2}}


def account(documents_in: int, documents_out: int) -> Account:
    lost = {"rule": documents_in - documents_out}
    return Account(documents_in, documents_out, drops=lost)  # type: ignore[arg-type]


def blocks_of(folder: Path, accounts: dict[str, Account], tiers: dict) -> dict[str, dict]:
    summary = Summary()
    for source in ("manual", "manual", "wiki"):
        summary.enter("text", source, "en")
    curation_page(folder, accounts, summary, tiers)
    assert all("warning" not in draw_block(path) for path in folder.iterdir())
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def test_sources_and_tiers_are_shown(tmp_path: Path):
    blocks = blocks_of(tmp_path, {"url": account(9, 3)}, TIERS)
    assert blocks["14_tiers"]["rows"] == [["top", 2, 3.0, 3.2]]
    shown = [(one["name"], one["value"]) for one in blocks["10_sources"]["bars"]]
    assert shown == [("manual", 2), ("wiki", 1)]


def test_a_chain_is_a_funnel_without_what_stands_beside_it(tmp_path: Path):
    chain = {"admit": account(9, 7), "tiers": account(7, 4)}
    beside = {"issues": account(5, 2), "issue_benchmarks": account(2, 1)}
    blocks = blocks_of(tmp_path, chain | beside, {})
    funnel = blocks["001_funnel"]
    names = [one["name"] for one in funnel["bars"]]
    assert names == ["documents in", "after admit", "after tiers"]
    assert "14_tiers" not in blocks
    # Its reasons are told all the same.
    assert ["issues", "rule", 3, 60.0] in blocks["002_reasons"]["rows"]


def test_a_fan_is_no_funnel(tmp_path: Path):
    fan = {"extract": account(9, 8), "natural": account(8, 2), "nextlong": account(8, 5)}
    funnel = blocks_of(tmp_path, fan, {})["001_funnel"]
    assert "documents used" in funnel["title"]
    assert [one["name"] for one in funnel["bars"]] == ["documents in", *fan]
