"""The recipe on files: accounts, workers, kills, changed configs, bad input."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from long_builder import CacheModel, make_document, prose, topic_words

from fivefold.__main__ import main
from fivefold.artifact import read_json
from fivefold.data.conversation_file import read_conversations
from fivefold.data.curate.account import QuarantineError
from fivefold.data.curate.dclm_baseline import Curated
from fivefold.data.curate.shard import find_shards
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.long.config import LongConfig
from fivefold.data.long.midtrain_long import METHODS, long_stage_folders, run_midtrain_long
from fivefold.data.long.scorer import TokenScores
from fivefold.errors import ConfigError, FivefoldError, MissingFileError
from fivefold.text.tokenizer import Tokenizer

OVERRIDES = {
    "context_tokens": 1024,
    "tasks": 2,
    "index": {"chunk_tokens": 96},
    "natural": {"min_tokens": 600},
    "nextlong": {"min_root_tokens": 200, "max_roots": 8},
    "entropylong": {
        "root_tokens": 350,
        "min_root_tokens": 100,
        "skipped_tokens": 8,
        "chunk_tokens": 96,
    },
    "interleave": {"block_tokens": 96, "min_similarity": 0.1, "max_documents": 5},
    "mrcr": {"conversations": 11, "min_passage_characters": 60, "max_passage_characters": 900},
    "repository": {"min_files": 2, "max_file_share": 0.9},
    "min_fill": 0.4,
}


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> dict[str, str]:
    tokenizer.save_pretrained(tmp_path / "model")
    return {"checkpoint": str(tmp_path / "model"), "factory": "toy_factory:open_toy"}


@pytest.fixture
def config(model: dict[str, str]) -> LongConfig:
    return LongConfig.model_validate({**OVERRIDES, "model": model})


def corpus() -> list[Document]:
    """Pages of some topics, one that asks what another tells, code, and a copy."""
    key = " ".join(topic_words(50)[:3])
    documents = [
        make_document(prose(topic, 10 * topic + n, 6 + 6 * (n % 2)), f"{topic}/{n}")
        for topic in range(3)
        for n in range(6)
    ]
    documents.append(
        make_document(prose(0, 1, 3) + f"The number of {key}~7\n" + prose(0, 2, 1), "asks")
    )
    documents.append(make_document(f"The number of {key}~7\n" + prose(0, 3, 4), "tells"))
    documents.append(make_document(documents[0].text, "copy"))
    for n in range(6):
        code = f"import m{n - 1}\n" + f"value = {n}\n" * 20
        documents.append(make_document(code, f"package/m{n}.py", lang="python"))
    return documents


def write(folder: Path, documents: list[Document], shards: int = 4) -> list[Path]:
    paths = [folder / f"{shard}.jsonl.zst" for shard in range(shards)]
    for shard, path in enumerate(paths):
        with document_writer(path) as append:
            for one in documents[shard::shards]:
                append(one)
    return paths


def run(files: list[Path], config: LongConfig, out: Path) -> Curated:
    return run_midtrain_long(find_shards(files), config, out)


def contents(curated: Curated) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in curated.documents}


def test_every_method_accounts_for_every_document(tmp_path: Path, config: LongConfig):
    documents = corpus()
    curated = run(write(tmp_path, documents), config, tmp_path / "out")
    assert list(curated.accounts) == ["extract", "benchmarks", "unique", *METHODS]
    unique = curated.accounts["unique"]
    assert unique.drops == {"unique.exact": 1}
    for method in METHODS:
        account = curated.accounts[method]
        expected = 11 if method == "mrcr" else len(documents) - 1
        assert account.documents_in == expected
        assert account.documents_in == account.documents_out + sum(account.drops.values())
        assert not account.quarantined
        assert account.documents_out or method == "mrcr", method
    sequences = [one for file in curated.documents for one in read_documents(file)]
    assert len(sequences) == curated.summary.documents
    assert len({one.id for one in sequences}) == len(sequences)
    statistics = read_json(tmp_path / "out" / "statistics.json") or {}
    for method in METHODS:
        found = [one for one in sequences if one.source == method]
        assert statistics[method]["sequences"] == len(found) == curated.summary.sources[method]
        assert sum(statistics[method]["gaps"].values()) == statistics[method]["dependencies"]
        assert sum(statistics[method]["depths"].values()) == statistics[method]["dependencies"]
    # What asks is answered by what tells, and the other way round; nothing else verifies.
    pair = {one.id for one in documents if one.url in ("asks", "tells")}
    assert {one.meta["root"] for one in sequences if one.source == "entropylong"} == pair


class Broken(CacheModel):
    """Fails on a text that it is given."""

    poison: tuple[int, ...] = ()

    def score_tokens(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
        if any(tuple(row[: len(self.poison)]) == self.poison for row in rows):
            raise ValueError("poisoned")
        return super().score_tokens(rows)


def test_a_document_that_the_model_fails_on_is_quarantined_and_scored_once_it_is_mended(
    tmp_path: Path, config: LongConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    documents = [make_document(prose(0, n, 30), str(n)) for n in range(4)]
    broken = Broken(tokenizer)
    broken.poison = tuple(tokenizer.encode(documents[2].text)[:20])
    monkeypatch.setattr("fivefold.data.long.step.open_model", lambda source: broken)
    methods = dict.fromkeys(set(METHODS) - {"natural", "nextlong"})
    natural = config.natural and config.natural.model_copy(update={"perplexity_tails": 0.0})
    only = config.model_copy(update={**methods, "natural": natural})
    files, out = write(tmp_path, documents), tmp_path / "out"
    with pytest.raises(QuarantineError, match=r"at step `natural`.*poisoned"):
        run(files, only, out)
    (poisoned,) = (read_json(out / "accounts.json") or {})["natural"]["quarantined"]
    assert poisoned["url"] == "2"
    assert 'raise ValueError("poisoned")' in poisoned["trace"]
    (other,) = out.glob("nextlong-*/documents/nextlong-00000.jsonl.zst")
    written = other.stat().st_mtime_ns
    broken.poison = (-1,)
    assert run(files, only, out).accounts["natural"].documents_out == 4
    assert other.stat().st_mtime_ns == written


def test_workers_and_a_kill_do_not_change_the_bytes(
    tmp_path: Path, config: LongConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    files = write(tmp_path, corpus())
    whole = run(files, config, tmp_path / "out")
    before = contents(whole)
    folders = long_stage_folders(find_shards(files), config, tmp_path / "out")
    # As after a kill in one task of a method and before another method.
    (folders["nextlong"] / "log" / "completions" / "00001").unlink()
    (folders["nextlong"] / "documents" / "nextlong-00001.jsonl.zst").unlink()
    for marker in (folders["mrcr"] / "log" / "completions").iterdir():
        marker.unlink()
    kept = folders["nextlong"] / "documents" / "nextlong-00000.jsonl.zst"
    written = kept.stat().st_mtime_ns
    two = config.model_copy(update={"workers": 2})
    again = run(files, two, tmp_path / "out")
    assert contents(again) == before
    assert kept.stat().st_mtime_ns == written
    for name, account in whole.accounts.items():
        assert again.accounts[name].to_json() == account.to_json()


def test_shards_do_not_change_the_sequences(tmp_path: Path, config: LongConfig):
    few = config.model_copy(update={"entropylong": None, "mrcr": None})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = run(write(tmp_path / "a", corpus(), 1), few, tmp_path / "one")
    other = run(write(tmp_path / "b", corpus()[::-1], 5), few, tmp_path / "other")
    assert contents(one) == contents(other)


RUN = """
import sys
from pathlib import Path
from fivefold.data.curate.shard import find_shards
from fivefold.data.long.config import LongConfig
from fivefold.data.long.midtrain_long import run_midtrain_long

if __name__ == "__main__":
    config = LongConfig.model_validate_json(Path(sys.argv[1]).read_text())
    run_midtrain_long(find_shards(sys.argv[3:]), config, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_run_ends_in_the_same_bytes_with_other_workers(
    tmp_path: Path, config: LongConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    files, script = write(tmp_path, corpus()), tmp_path / "run.py"
    script.write_text(RUN)
    two = config.model_copy(update={"workers": 2})
    (tmp_path / "config.json").write_text(two.model_dump_json())
    command = [sys.executable, str(script), str(tmp_path / "config.json")]
    command += [str(tmp_path / "killed"), *map(str, files)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if len(list(tmp_path.glob("killed/nextlong-*/log/completions/*"))) >= 1:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    killed = run(files, config, tmp_path / "killed")
    assert contents(killed) == contents(run(files, config, tmp_path / "whole"))


def test_a_changed_config_redoes_what_is_downstream(tmp_path: Path, config: LongConfig):
    files = find_shards(write(tmp_path, corpus()))

    def changed(**update: object) -> set[str]:
        base = long_stage_folders(files, config, tmp_path)
        other = LongConfig.model_validate({**config.model_dump(), **update})
        new = long_stage_folders(files, other, tmp_path)
        return {name for name in base if base[name] != new[name]}

    assert changed(workers=5) == set()
    assert changed(nextlong={"min_root_tokens": 1}) == {"nextlong"}
    assert changed(model={"checkpoint": config.model.checkpoint, "factory": "a:b"}) == {
        "score",
        "natural",
        "entropylong",
    }
    assert changed(natural={"min_tokens": 9}) == {"score", "natural"}
    assert changed(seed=1) == set(METHODS)
    assert changed(index={"chunk_tokens": 50}) == {"library", "score", *METHODS}
    Path(config.model.checkpoint, "weights").write_text("new")
    moved = long_stage_folders(files, config, tmp_path)
    Path(config.model.checkpoint, "weights").write_text("newer")
    again = long_stage_folders(files, config, tmp_path)
    assert moved["entropylong"] != again["entropylong"]
    assert moved["nextlong"] == again["nextlong"]


def test_without_a_model_it_says_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = LongConfig.model_validate({**OVERRIDES, "context_tokens": 512})
    curated = run(write(tmp_path, corpus()), config, tmp_path / "out")
    assert "entropylong" not in curated.accounts
    assert any("entropylong" in one.message for one in caplog.records)
    assert any("4 characters" in one.message for one in caplog.records)


def test_a_failing_unit_is_quarantined_and_many_fail_the_run(
    tmp_path: Path, config: LongConfig, monkeypatch: pytest.MonkeyPatch
):
    from fivefold.data.long.nextlong import NextLong

    whole = NextLong._root_parts
    bad = min(one.id for one in corpus() if one.url.startswith("0/"))

    def fail(self: NextLong, place: int) -> list[int]:
        if self._library.documents[place].id == bad:
            raise ZeroDivisionError("poisoned")
        return whole(self, place)

    # The fault is planted; what is looked at is how the step and the run take it.
    monkeypatch.setattr(NextLong, "_root_parts", fail)
    only = {"nextlong": {"min_root_tokens": 50, "max_roots": 99}, "max_quarantined": 0.1}
    off = dict.fromkeys(("natural", "entropylong", "interleave", "mrcr", "repository"))
    lenient = LongConfig.model_validate({**config.model_dump(), **only, **off})
    curated = run(write(tmp_path, corpus()), lenient, tmp_path / "out")
    (poisoned,) = curated.accounts["nextlong"].quarantined
    assert poisoned["id"] == bad
    assert "ZeroDivisionError" in poisoned["trace"]
    strict = lenient.model_copy(update={"max_quarantined": 0.001})
    with pytest.raises(QuarantineError, match="nextlong"):
        run(write(tmp_path, corpus()), strict, tmp_path / "strict")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"checkpoint": "/no/where", "factory": "toy_factory:open_toy"}, MissingFileError),
        ({"factory": "toy_factory:no_such"}, ConfigError),
        ({"factory": "no_such_module:f"}, ConfigError),
        ({"factory": "colonless"}, ConfigError),
    ],
)
def test_a_model_that_is_not_there_is_named(
    tmp_path: Path, model: dict[str, str], change: dict[str, str], error: type[FivefoldError]
):
    config = LongConfig.model_validate({**OVERRIDES, "model": {**model, **change}})
    with pytest.raises(error):
        run(write(tmp_path, corpus()), config, tmp_path / "out")


def test_the_command_runs_it_and_shows_the_funnel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pages = ["\n\n".join(prose(topic, n, 1).strip() for n in range(40)) for topic in range(6)]
    names = ["harbour", "lantern", "violin", "copper", "saddle", "timber"]
    named = [page.replace(".", f" {name} {name}.") for page, name in zip(pages, names, strict=True)]
    files = write(tmp_path, [make_document(page, str(n)) for n, page in enumerate(named)])
    out = tmp_path / "run"
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["context_tokens=2048", "tasks=2", "mrcr.conversations=22"]
    arguments += ["mrcr.min_passage_characters=60", "--out", str(out)]
    monkeypatch.setattr(
        sys, "argv", ["fivefold", "data", "run", "midtrain_long", *map(str, files), *arguments]
    )
    main()
    shown = capsys.readouterr()
    assert "Funnel" in shown.out
    for name in ("unique", "natural", "nextlong", "interleave", "repository", "mrcr"):
        assert name in shown.out
    assert (out / "page" / "04_gaps.json").is_file()
    assert len(list((out / "documents").iterdir())) == 2 * 5
    (out / "chats").mkdir()
    (out / "conversations.jsonl").rename(out / "chats" / "mrcr.jsonl")
    chats = list(read_conversations(out / "chats" / "mrcr.jsonl"))
    assert len(chats) == 22
    assert {chat.source for chat in chats} == {"mrcr"}
    assert any(chat.tools for chat in chats)
