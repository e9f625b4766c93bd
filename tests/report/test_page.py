"""The page carries everything, loads nothing, and survives what a kill leaves behind."""

import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fivefold.errors import MissingFileError
from fivefold.metrics import read_metrics
from fivefold.report.page import write_report

BOOKKEEPING = {"stage", "step", "time_seconds"}
VOID = {"meta", "img"}
MakeRun = Callable[..., Path]


class Outline(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + " "


def read_page(run: Path) -> tuple[str, Outline]:
    page = write_report(run).read_text(encoding="utf-8")
    return page, Outline(page)


def test_report_contains_every_metric_name_and_stage(make_run: MakeRun):
    run = make_run()
    _, outline = read_page(run)
    records = read_metrics(run / "metrics.jsonl")
    names = {name for record in records for name in record} - BOOKKEEPING
    assert len(names) > 15
    assert [name for name in names if name not in outline.text] == []
    for stage in ("corpus", "tokenizer", "tokens", "pretrain", "midtrain", "evaluate"):
        assert stage in outline.text


def test_report_tells_the_story_of_the_run(make_run: MakeRun):
    _, outline = read_page(make_run())
    for phrase in (
        "less than gzip -9, which spends 2.09",
        "Stage midtrain has not finished",
        "4 of 6",
        "not started",
        "5 min 30 s",
        "python3-doc",
        "a quiet 2-core machine",
        "4be1f6d20c9a+changes",
        "would not keep.",
        "fivefold run nano --run-dir 'runs/my nano'",
        '{"lr": 0.02, "momentum": 0.95}',
    ):
        assert phrase in re.sub(r"\s+", " ", outline.text)


def test_report_loads_nothing(make_run: MakeRun):
    page, outline = read_page(make_run())
    loaded = [
        value
        for name, value in outline.attributes
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert len(loaded) > 5
    assert all(value and value.startswith(("#", "data:image/png;base64,")) for value in loaded)
    assert "link" not in outline.tags
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)
    assert "://" not in page.partition('id="next"')[2]


def test_report_escapes_what_a_model_wrote(make_run: MakeRun):
    run = make_run()
    attack = "<script>alert(1)</script>\"'&\x07"
    block = {
        "kind": "samples",
        "title": attack,
        "note": attack,
        "samples": [{"label": attack, "prompt": attack, "text": attack}],
    }
    (run / "pretrain" / "page" / "99_attack.json").write_text(json.dumps(block), encoding="utf-8")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": "midtrain", "step": 1, f"odd/{attack}": 1}) + "\n")
    page, outline = read_page(run)
    assert outline.tags.count("script") == 1
    assert "<script>alert" not in page
    assert "\x07" not in page
    assert outline.text.count("<script>alert(1)</script>\"'&\u2407") == 6


def test_report_of_a_run_cut_anywhere_in_its_metrics_still_renders(make_run: MakeRun):
    run = make_run(steps=20)
    whole = (run / "metrics.jsonl").read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 3):
        (run / "metrics.jsonl").write_bytes(whole[:cut])
        _, outline = read_page(run)
        assert "midtrain" in outline.text
        assert ("may have cut it" in outline.text) == (cut > 0)


def test_report_of_a_damaged_run_says_what_is_wrong(make_run: MakeRun):
    run = make_run(steps=20)
    metrics = run / "metrics.jsonl"
    metrics.write_text("not json\n[1]\n" + metrics.read_text(encoding="utf-8"), encoding="utf-8")
    (run / "pretrain" / "finished.json").write_text('{"sec', encoding="utf-8")
    (run / "manifest.json").unlink()
    (run / "config.json").write_text("[]", encoding="utf-8")
    _, outline = read_page(run)
    for note in (
        "metrics.jsonl is damaged: line 1",
        "finished.json cannot be read",
        "manifest.json is missing",
        "config.json does not hold an object",
    ):
        assert note in outline.text
    assert "train/loss_nats" in outline.text


def test_report_of_an_empty_directory_renders(tmp_path: Path):
    _, outline = read_page(tmp_path)
    assert "No stage has begun" in outline.text


def test_report_shows_values_that_are_not_finite_as_a_note(make_run: MakeRun):
    run = make_run(steps=20)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for value in ("nan", float("inf"), None):
            record = {"stage": "pretrain", "step": 21, "train/loss_nats": value}
            file.write(json.dumps(record) + "\n")
    _, outline = read_page(run)
    assert "3 values were not finite" in outline.text


def test_report_replaces_characters_that_no_file_can_hold(make_run: MakeRun):
    run = make_run(steps=20)
    block = {"kind": "text", "text": "half a pair: \ud800"}
    (run / "pretrain" / "page" / "99_pair.json").write_text(json.dumps(block), encoding="utf-8")
    _, outline = read_page(run)
    assert "half a pair: ?" in outline.text


def test_report_is_the_same_for_the_same_run(make_run: MakeRun):
    run = make_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_report_without_a_run_directory_says_so(tmp_path: Path):
    with pytest.raises(MissingFileError, match="a run directory"):
        write_report(tmp_path / "absent")


def test_report_of_five_thousand_records_takes_under_three_seconds(make_run: MakeRun):
    run = make_run(steps=5000)
    assert len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) > 5000
    begin = time.perf_counter()
    path = write_report(run)
    assert time.perf_counter() - begin < 3
    assert path.stat().st_size < 1_000_000
