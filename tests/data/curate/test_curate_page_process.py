import os
import signal
import time
from pathlib import Path

import pytest

from fivefold.data.curate import page_process
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.extract_step import ExtractText, ReadShards
from fivefold.data.curate.page_process import PageProcess, PageProcessError
from fivefold.data.curate.shard import find_shards
from fivefold.data.curate.web_page import extract_page

PAGE = "<html lang=de><title>T</title><body><p>Über Brücken und Flüsse.</p></body></html>".encode()
# So many open elements take the parser's tree walk longer than the limit, inside one call.
ENDLESS = b"<html><body>" + b"<div><p>x" * 400_000


def extract(process: PageProcess, content: bytes) -> str:
    return process.extract(content, "html", "", main_content=True).text


def test_the_child_answers_as_the_function_does():
    with PageProcess(5) as process:
        for page in (PAGE, b"", b"\xff\xfe", PAGE * 2000):
            expected = extract_page(page, "html")
            assert process.extract(page, "html", "", main_content=True) == expected


def test_a_page_that_takes_too_long_is_ended_and_the_next_one_goes_on():
    with PageProcess(0.05) as process:
        began = time.process_time()
        with pytest.raises(PageProcessError, match=r"more than 0\.05 s of processor time"):
            extract(process, ENDLESS)
        assert time.process_time() - began < 1
        assert extract(process, PAGE) == "Über Brücken und Flüsse."


def test_a_page_that_ends_its_process_is_named_and_the_next_one_goes_on():
    with PageProcess(5) as process:
        assert extract(process, PAGE)
        child = process._child
        assert child
        os.kill(child.pid, signal.SIGSEGV)
        with pytest.raises(PageProcessError, match="ended its process: SIGSEGV"):
            extract(process, PAGE)
        assert extract(process, PAGE)


def test_a_page_that_waits_without_working_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_process, "_LEAST_SECONDS", 0.3)
    with PageProcess(60) as process:
        extract(process, PAGE)
        child = process._child
        assert child
        monkeypatch.setattr(page_process, "_PATIENCE", 0)
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(PageProcessError, match=r"no answer within 0\.3 s by the clock"):
            extract(process, PAGE)
        assert child.poll() is not None
        monkeypatch.undo()
        assert extract(process, PAGE)


def test_no_child_is_left_behind():
    with PageProcess(5) as process:
        extract(process, PAGE)
        child = process._child
    assert child
    assert child.poll() is not None


# A collection of a whole test run's garbage takes the parent's processor time too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hanging_page_is_quarantined_and_the_shard_goes_on(tmp_path: Path):
    for name, content in (("a", PAGE), ("b", ENDLESS), ("c", PAGE)):
        (tmp_path / f"{name}.html").write_bytes(content)
    config = ExtractConfig()
    reader = ReadShards(find_shards([tmp_path]), config, tmp_path / "reading", 60.0)
    step = ExtractText(config, tmp_path / "accounts", page_seconds=0.5)
    assert [page.metadata["url"] for page in step.run(reader.run())] == ["a.html", "c.html"]
    text = (tmp_path / "accounts" / "extract" / "00000.json").read_text()
    assert "more than 0.5 s of processor time" in text
    assert "b.html" in text
