"""Steps that are no judges meet a document that does not end, or an error that is nobody's."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document as Page

from fivefold.data.curate import dedup_step
from fivefold.data.curate.account import QuarantineError, read_accounts
from fivefold.data.curate.config import CurateConfig, ExtractConfig, MinHashConfig
from fivefold.data.curate.dclm_baseline import run_dclm_baseline
from fivefold.data.curate.extract_step import ExtractText, ReadShards
from fivefold.data.curate.raw_page import RawPage, read_texts
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.data.curate.step import (
    JudgeStep,
    PageTimeoutError,
    document_to_page,
    is_of_the_run,
    within_time,
)
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.long.config import IndexConfig, LongConfig
from fivefold.data.long.step import BuildLibrary
from fivefold.data.maths.config import TemplateConfig
from fivefold.data.maths.step import DropTemplates, FindTemplates, OutlineDocuments
from fivefold.errors import (
    ConfigError,
    CorruptFileError,
    FivefoldError,
    MissingFileError,
    StorageError,
)
from fivefold.text.completer import RefusedError
from fivefold.text.endpoint import RefusedContentError

SECONDS = 0.1
English = Callable[[int], str]


def endless() -> None:
    while True:
        pass


def hang_on(text: str, function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that never ends on texts that hold another."""

    def call(*arguments: object) -> object:
        if any(isinstance(one, str) and text in one for one in arguments):
            endless()
        return function(*arguments)

    return call


def write_rows(folder: Path, texts: list[str]) -> Path:
    path = folder / "rows.jsonl.zst"
    with document_writer(path) as append:
        for number, text in enumerate(texts):
            append(Document(str(number), text, "web", f"u{number}", "en"))
    return path


def test_items_come_until_one_takes_too_long():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        endless()

    found: list[int] = []
    with pytest.raises(PageTimeoutError):
        found.extend(within_time(items(), SECONDS))
    assert list(within_time([1, 2], SECONDS)) == [1, 2]


@pytest.mark.parametrize("damaged", ["stop", "quarantine"])
def test_a_reader_that_hangs_is_told_by_page_and_file(
    damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def read(shard: Shard, config: ExtractConfig) -> Iterator[RawPage]:
        yield RawPage("first", b"<p>One page.</p>")
        if shard.name == "a.warc":
            endless()
        yield RawPage("second", b"<p>Another page.</p>")

    monkeypatch.setattr("fivefold.data.curate.extract_step.read_shard", read)
    shards = [Shard(tmp_path / name, name, name, "warc") for name in ("a.warc", "b.warc")]
    config = ExtractConfig.model_validate({"damaged_files": damaged})
    reader = ReadShards(shards, config, tmp_path / "reading", SECONDS)
    step = ExtractText(config, tmp_path / "accounts", 30)
    if damaged == "stop":
        with pytest.raises(CorruptFileError, match=r"to read page 2 of .*a\.warc` in 0\.1 s"):
            list(step.run(reader.run()))
        return
    sources = [page.metadata["source"] for page in step.run(reader.run())]
    assert sources == ["a.warc", "b.warc", "b.warc"]
    (poisoned,) = read_accounts(tmp_path / "accounts" / "extract", 1).quarantined
    assert poisoned["url"] == "a.warc"
    assert "more than 0.1 s of processor time" in poisoned["trace"]


def test_a_text_that_cannot_be_signed_is_quarantined_and_the_others_are_told_apart(
    tmp_path: Path, english: English, monkeypatch: pytest.MonkeyPatch
):
    texts = [english(number) for number in range(6)]
    texts[2] += "\nendless"
    texts.append(texts[4] + " The end.")
    signed = hang_on("endless", dedup_step.text_signature)
    monkeypatch.setattr(dedup_step, "text_signature", signed)
    config = CurateConfig(
        tasks=2, language=None, heuristics=None, page_seconds=SECONDS, max_quarantined=0.5
    )
    shards = find_shards([write_rows(tmp_path, texts)])
    curated = run_dclm_baseline(shards, config, tmp_path / "out")
    account = curated.accounts["duplicates"]
    assert dict(account.drops) == {"duplicate.near": 1}
    (poisoned,) = account.quarantined
    assert poisoned["url"] == "u2"
    assert "PageTimeoutError" in poisoned["trace"]
    left = {one.url for file in curated.documents for one in read_documents(file)}
    assert left == {"u0", "u1", "u3", "u5", "u6"}


def test_more_time_mends_what_failed_for_want_of_it(
    tmp_path: Path, english: English, monkeypatch: pytest.MonkeyPatch
):
    signed = dedup_step.text_signature

    def dawdle(text: str, *rest: Any) -> Any:
        began = time.process_time()
        while "slow" in text and time.process_time() - began < 3 * SECONDS:
            pass
        return signed(text, *rest)

    monkeypatch.setattr(dedup_step, "text_signature", dawdle)
    texts = [english(1), english(2) + "\nslow"]
    shards = find_shards([write_rows(tmp_path, texts)])
    config = CurateConfig(tasks=1, language=None, heuristics=None, page_seconds=SECONDS)
    with pytest.raises(QuarantineError, match="PageTimeoutError"):
        run_dclm_baseline(shards, config, tmp_path / "out")
    (read,) = (tmp_path / "out").glob("extract-*/documents/*")
    before = read.stat().st_mtime_ns
    more = config.model_copy(update={"page_seconds": 60.0})
    assert run_dclm_baseline(shards, more, tmp_path / "out").summary.documents == 2
    assert read.stat().st_mtime_ns == before


def test_decisions_of_before_traces_are_still_read(tmp_path: Path, english: English):
    shards = find_shards([write_rows(tmp_path, [english(1), english(2)])])
    config = CurateConfig(tasks=1, language=None, heuristics=None)
    run_dclm_baseline(shards, config, tmp_path / "out")
    for stage, name in (("sign", "00000.json"), ("choose", "traces.json")):
        (folder,) = (tmp_path / "out").glob(f"{stage}-*")
        (folder / name).unlink()
    changed = config.model_copy(update={"bloom": None})
    assert run_dclm_baseline(shards, changed, tmp_path / "out").summary.documents == 2


def test_a_text_without_an_outline_is_quarantined(
    tmp_path: Path, english: English, monkeypatch: pytest.MonkeyPatch
):
    file = write_rows(tmp_path, [english(1), english(2) + "\nendless", english(3)])
    config = TemplateConfig(minhash=MinHashConfig())
    name = "fivefold.data.maths.step.outline_text"
    from fivefold.data.maths.template import outline_text

    monkeypatch.setattr(name, hang_on("endless", outline_text))
    list(OutlineDocuments([file], config, tmp_path / "outline", SECONDS).run())
    list(FindTemplates(tmp_path / "outline", 1, config, tmp_path / "templates").run())
    drop = DropTemplates(config, tmp_path / "templates", tmp_path / "accounts", 30)
    left = drop.run(map(document_to_page, read_documents(file)))
    assert [page.id for page in left] == ["0", "2"]
    (poisoned,) = read_accounts(tmp_path / "accounts" / "templates", 1).quarantined
    assert "PageTimeoutError" in poisoned["trace"]


def test_a_text_that_cannot_be_cut_is_not_in_the_library(
    tmp_path: Path, english: English, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "in").mkdir()
    file = write_rows(tmp_path / "in", [english(1), english(2) + "\nendless", english(3)])
    file.rename(tmp_path / "in" / "00000.jsonl.zst")
    from fivefold.data.long.library import cut_into_chunks, open_library

    cut = hang_on("endless", cut_into_chunks)
    monkeypatch.setattr("fivefold.data.long.library.cut_into_chunks", cut)
    config = LongConfig(index=IndexConfig(chunk_tokens=64), page_seconds=SECONDS)
    list(BuildLibrary(tmp_path / "in", 1, config, tmp_path / "out").run())
    assert [one.id for one in open_library(tmp_path / "out").documents] == ["0", "2"]
    account = read_accounts(tmp_path / "out" / "accounts" / "unique", 1)
    assert [one["id"] for one in account.quarantined] == ["1"]


ERRORS: tuple[type[FivefoldError], ...] = (
    ConfigError,
    MissingFileError,
    StorageError,
    RefusedError,
)


@pytest.mark.parametrize("kind", [*ERRORS, CorruptFileError, RefusedContentError, ValueError])
def test_errors_that_no_page_is_to_blame_for_end_the_step(kind: type[Exception], tmp_path: Path):
    if issubclass(kind, FivefoldError):
        error: Exception = kind(expected="a model", found="none", fix="Install it")
    else:
        error = kind("poisoned")

    class Failing(JudgeStep):
        def prepare(self) -> Callable[[Page], Verdict]:
            def judge_page(page: Page) -> Verdict:
                raise error

            return judge_page

    step = Failing("failing", tmp_path, 30)
    pages = [document_to_page(Document("1", "text", "web"))]
    assert is_of_the_run(error) == (kind in ERRORS)
    if kind in ERRORS:
        with pytest.raises(kind, match="Install it"):
            list(step.run(pages))
        return
    assert list(step.run(pages)) == []
    assert len(read_accounts(tmp_path / "failing", 1).quarantined) == 1


def test_a_hanging_page_of_reference_text_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "a.html").write_text("<p>One page.</p>")
    # So many open elements take the parser's tree walk longer than the limit, inside one call.
    (tmp_path / "b.html").write_bytes(b"<html><body>" + b"<div><p>x" * 400_000)
    (tmp_path / "c.txt").write_text("Another page.")
    monkeypatch.setattr("fivefold.data.curate.raw_page._PAGE_SECONDS", 0.2)
    texts = [one.text for one in read_texts(find_shards([tmp_path]), ExtractConfig())]
    assert texts == ["One page.", "Another page."]
    assert "1 pages of" in caplog.text
    assert "b.html: more than 0.2 s" in caplog.text


def test_gzipped_rows_are_read_and_a_cut_one_is_named(tmp_path: Path):
    path = tmp_path / "rows.jsonl.gz"
    lines = "".join(json.dumps({"text": f"Text {n}.", "url": str(n)}) + "\n" for n in range(3000))
    path.write_bytes(gzip.compress(lines[:9000].encode()) + gzip.compress(lines[9000:].encode()))
    documents = list(read_texts(find_shards([path]), ExtractConfig()))
    assert [one.text for one in documents] == [f"Text {n}." for n in range(3000)]
    assert documents[0].source == "rows"
    for damage in (path.read_bytes()[:-20], path.read_bytes() + b"rest", b"no gzip"):
        path.write_bytes(damage)
        with pytest.raises(CorruptFileError, match=r"gzip members in .*rows\.jsonl\.gz"):
            list(read_texts(find_shards([path]), ExtractConfig()))
