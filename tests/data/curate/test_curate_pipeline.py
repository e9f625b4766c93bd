"""The whole pipeline on files: order, shards, workers, relaunch, faults."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fivefold.data.curate.account import QuarantineError
from fivefold.data.curate.config import CurateConfig
from fivefold.data.curate.dclm_baseline import Curated, run_dclm_baseline, stage_folders
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.data.curate.show import read_run
from fivefold.data.curate.step import JudgeStep, PageTimeoutError, document_to_page, time_limit
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, document_id, document_writer, read_documents
from fivefold.errors import CorruptFileError, MissingFileError

CONFIG = CurateConfig(tasks=3)
English = Callable[[int], str]


def curate(files: Sequence[Path], config: CurateConfig, out: Path) -> Curated:
    return run_dclm_baseline(find_shards(files), config, out)


def folders_of(files: Sequence[Path], config: CurateConfig, out: Path) -> dict[str, Path]:
    return stage_folders(find_shards(files), config, out)


def document(text: str, url: str) -> Document:
    return Document(id=document_id("web", url), text=text, source="web", url=url)


@pytest.fixture
def corpus(english: English) -> list[Document]:
    """Twelve good pages, copies and near-copies of some, and one page for each kind of drop."""
    good = [document(english(number), f"https://site.org/{number}") for number in range(12)]
    first, second = good[0].text, good[1].text
    return [
        *good,
        document(first, "https://copy.org/"),
        document("  " + first.replace(" ", "  "), "https://spaced.org/"),
        document(second + " The end.", "https://near.org/"),
        document(first, "https://porn.org/"),
        document(
            "zu der Zeit, da die Männer mit den Booten auf dem Fluss waren " * 9, "https://d.de/"
        ),
        document("The end of that.", "https://short.org/"),
        replace(good[3], text=english(99)),
    ]


def write(folder: Path, documents: Sequence[Document], shards: int) -> list[Path]:
    paths = []
    for shard in range(shards):
        paths.append(folder / f"{shard}.jsonl.zst")
        with document_writer(paths[-1]) as append:
            for one in documents[shard::shards]:
                append(one)
    return paths


def texts(files: Sequence[Path]) -> dict[str, str]:
    return {one.url: one.text for file in files for one in read_documents(file)}


def test_every_planted_page_goes_for_its_reason(tmp_path: Path, corpus: list[Document]):
    curated = curate(write(tmp_path, corpus, 2), CONFIG, tmp_path / "out")
    drops = {name: dict(account.drops) for name, account in curated.accounts.items()}
    assert drops == {
        "url": {"url.strict_word": 1},
        "extract": {},
        "language": {"language.other": 1},
        "heuristics": {"quality.few_words": 1},
        "duplicates": {"duplicate.id": 1, "duplicate.exact": 2, "duplicate.near": 1},
        "benchmarks": {},
    }
    left = texts(curated.documents)
    assert len(left) == 12
    assert all(one.lang == "en" for file in curated.documents for one in read_documents(file))
    # The longest of a group stays.
    assert {"https://spaced.org/", "https://near.org/"} < set(left)
    written = json.loads((tmp_path / "out" / "accounts.json").read_text())
    assert written["url"]["samples"]["url.strict_word"][0]["url"] == "https://porn.org/"


@pytest.mark.parametrize(("shards", "tasks", "workers"), [(1, 1, 1), (5, 2, 1), (4, 2, 2)])
def test_result_depends_on_documents_alone(
    tmp_path: Path, corpus: list[Document], shards: int, tasks: int, workers: int
):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = curate(write(tmp_path / "a", corpus, 2), CONFIG, tmp_path / "one")
    other = CurateConfig(tasks=tasks, workers=workers)
    files = write(tmp_path / "b", corpus[::-1], shards)
    result = curate(files, other, tmp_path / "two")
    assert texts(result.documents) == texts(expected.documents)
    assert [file.read_bytes() for file in result.documents] == [
        file.read_bytes() for file in expected.documents
    ]
    for name, account in expected.accounts.items():
        assert result.accounts[name].to_json() == account.to_json()


def test_relaunch_redoes_only_what_is_missing(tmp_path: Path, corpus: list[Document]):
    files, out = write(tmp_path, corpus, 3), tmp_path / "out"
    curate(files, CONFIG, out)
    folders = folders_of(files, CONFIG, out)
    kept = [folders["filter"] / "documents" / f"{task:05d}.jsonl.zst" for task in range(3)]
    before = [path.stat().st_mtime_ns for path in kept]
    content = kept[1].read_bytes()
    # As after a kill in task 1 and before everything downstream.
    kept[1].unlink()
    (folders["filter"] / "log" / "completions" / "00001").unlink()
    for name in ("sign", "choose", "dedup"):
        for marker in (folders[name] / "log" / "completions").iterdir():
            marker.unlink()
    curate(files, CONFIG, out)
    after = [path.stat().st_mtime_ns for path in kept]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    assert kept[1].read_bytes() == content


RUN = """
import sys
from pathlib import Path
from fivefold.data.curate.config import CurateConfig
from fivefold.data.curate.dclm_baseline import run_dclm_baseline
from fivefold.data.curate.shard import find_shards

if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[3:]]
    config = CurateConfig(tasks=6, workers=int(sys.argv[1]))
    run_dclm_baseline(find_shards(files), config, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_run_ends_in_the_same_bytes_with_other_workers(tmp_path: Path, english: English):
    corpus = [document(english(i % 700) + f"\nAnd so on to {i}.", str(i)) for i in range(900)]
    files, script = write(tmp_path, corpus, 6), tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), "2", str(tmp_path / "killed"), *map(str, files)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if len(list(tmp_path.glob("killed/filter-*/log/completions/*"))) >= 2:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    config = CurateConfig(tasks=6)
    killed = curate(files, config, tmp_path / "killed")
    whole = curate(files, config, tmp_path / "whole")
    assert [file.read_bytes() for file in killed.documents] == [
        file.read_bytes() for file in whole.documents
    ]
    for name, account in whole.accounts.items():
        assert killed.accounts[name].to_json() == account.to_json()
    assert whole.accounts["duplicates"].drops["duplicate.near"] >= 190


def test_datatrove_is_imported_when_the_pipeline_runs_and_not_before():
    code = (
        "import sys, fivefold.data.curate.dclm_baseline, fivefold.data.curate.heuristics;"
        "assert not {'datatrove', 'torch', 'fasttext'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_changed_config_or_input_changes_what_is_downstream_only(tmp_path: Path):
    files = write(tmp_path, [document("text", "u")], 1)
    base = folders_of(files, CONFIG, tmp_path)
    no_bloom = folders_of(files, CONFIG.model_copy(update={"bloom": None}), tmp_path)
    changed = [name for name in base if base[name] != no_bloom[name]]
    assert changed == ["dedup", "decontaminate", "score", "select"]
    no_hash = folders_of(files, CONFIG.model_copy(update={"minhash": None}), tmp_path)
    later = [name for name in list(base)[2:] if name != "benchmarks"]
    assert [name for name in base if base[name] != no_hash[name]] == later
    more_workers = CONFIG.model_copy(update={"workers": 7})
    assert folders_of(files, more_workers, tmp_path) == base
    write(tmp_path, [document("other text", "u")], 1)
    other = folders_of(files, CONFIG, tmp_path)
    # The index of benchmarks hangs on their files alone.
    assert set(other.values()) & set(base.values()) == {base["benchmarks"]}


def test_parts_can_be_left_out(tmp_path: Path, corpus: list[Document]):
    config = CurateConfig(
        url=None,
        language=None,
        heuristics=None,
        minhash=None,
        bloom=None,
        benchmarks=None,
        tasks=2,
    )
    curated = curate(write(tmp_path, corpus, 2), config, tmp_path / "out")
    assert list(curated.accounts) == ["extract", "duplicates"]
    assert curated.accounts["duplicates"].drops == {"duplicate.id": 1, "duplicate.exact": 3}


def test_no_documents_give_no_documents(tmp_path: Path):
    curated = curate(write(tmp_path, [], 2), CONFIG, tmp_path / "out")
    assert texts(curated.documents) == {}
    assert curated.accounts["duplicates"].documents_in == 0


class Fragile(JudgeStep):
    """Fails on some pages and never ends on others."""

    def prepare(self):
        def judge_page(page):
            if "poison" in page.text:
                raise ValueError("poisoned")
            while "endless" in page.text:
                pass
            return Verdict(page.text)

        return judge_page


def test_poisoned_and_endless_pages_are_quarantined_and_the_others_go_on(tmp_path: Path):
    words = ["good", "poison", "good", "endless", "good"]
    pages = [document_to_page(document(text, str(i))) for i, text in enumerate(words)]
    step = Fragile("fragile", tmp_path, page_seconds=0.05)
    assert [page.text for page in step.run(iter(pages))] == ["good"] * 3
    account = json.loads((tmp_path / "fragile" / "00000.json").read_text())
    traces = {one["url"]: one["trace"] for one in account["quarantined"]}
    assert "ValueError: poisoned" in traces["1"]
    assert "PageTimeoutError" in traces["3"]
    assert account["documents_in"] == 5
    assert account["documents_out"] == 3


def test_a_regular_expression_that_does_not_end_is_stopped():
    with pytest.raises(PageTimeoutError, match="processor time"), time_limit(0.1):
        re.fullmatch(r"(a|aa)+b", "a" * 60)


def test_too_many_failures_fail_the_run(
    tmp_path: Path, corpus: list[Document], monkeypatch: pytest.MonkeyPatch
):
    def fail(url: str, *rest: object) -> str:
        raise RuntimeError("no such rule")

    # A rule that is broken: nothing short of breaking one makes the real steps fail.
    monkeypatch.setattr("fivefold.data.curate.step.url_reason", fail)
    out = tmp_path / "out"
    out.mkdir()
    (out / "accounts.json").write_text('{"old": {}}')
    with pytest.raises(QuarantineError, match=r"no such rule.*`fivefold data inspect OUT --drop"):
        curate(write(tmp_path, corpus, 1), CONFIG, out)
    accounts, _ = read_run(out)
    assert len(accounts["url"].quarantined) == len(corpus)


def test_results_of_an_earlier_run_do_not_outlive_one_that_fails(tmp_path: Path):
    (tmp_path / "accounts.json").write_text("{}")
    with pytest.raises(MissingFileError):
        run_dclm_baseline([Shard(tmp_path / "none", "x", "none", "rows")], CONFIG, tmp_path)
    assert not (tmp_path / "accounts.json").exists()


def test_cut_and_missing_inputs_are_named(tmp_path: Path, corpus: list[Document]):
    (path,) = write(tmp_path, corpus, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFileError, match="whole zstd frames"):
        curate([path], CONFIG, tmp_path / "out")
    with pytest.raises(MissingFileError, match="none"):
        curate([tmp_path / "none"], CONFIG, tmp_path / "out")
