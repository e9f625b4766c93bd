"""`fivefold data run`, `stats`, `inspect` and `train-classifier` as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from fivefold.__main__ import main
from fivefold.artifact import digest_directory
from fivefold.data.command_line import DATA_COMMANDS
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.raw_page import read_texts
from fivefold.data.curate.shard import find_shards
from fivefold.data.document import read_documents
from fivefold.report.block import draw_block

Run = Callable[..., tuple[int, str]]
SMALL = "the of and to a in that it for was with as his her they from have not which by"
WORDS = (
    "river mill ferry orchard bridge brother autumn harvest stone letter window market captain "
    "island winter garden soldier candle mountain teacher village kitchen morning forest painter "
    "sailor silver bottle weather carriage blanket stranger journey kingdom shoulder whisper "
    "promise measure question answer shadow country daughter machine minister music number"
)


@pytest.fixture
def fivefold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Run a command; return its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fivefold", "data", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out + captured.err

    return run


def page(number: int, sentences: int = 8) -> str:
    random = Random(number)
    pairs = [
        [f"{random.choice(SMALL.split())} {random.choice(WORDS.split())}" for _ in range(9)]
        for _ in range(sentences)
    ]
    paragraphs = "".join(f"<p>{' '.join(some).capitalize()}.</p>" for some in pairs)
    return f"<html><body>{paragraphs}</body></html>"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.html").write_text(page(number))
    (folder / "copy.html").write_text(page(3))
    (folder / "short.html").write_text(page(50, sentences=1))
    (folder / "repeat.html").write_text(page(60).replace("</body>", page(60)[12:] * 2))
    return folder


def test_run_then_stats_then_inspect(fivefold: Run, site: Path, tmp_path: Path):
    code, output = fivefold("run", "dclm_baseline", str(site), "tasks=3", "--out", "run")
    assert code == 0
    documents = [
        one for file in (tmp_path / "run/documents").iterdir() for one in read_documents(file)
    ]
    assert sorted(one.url for one in documents) == sorted(
        [*(f"{number}.html" for number in range(10) if number != 3), documents_url(documents)]
    )
    taken = read_texts(find_shards([tmp_path / "run" / "documents"]), ExtractConfig())
    assert sorted(one.text for one in taken) == sorted(one.text for one in documents)
    assert "13 files" in output
    assert "to see what went: fivefold data inspect run --dropped-by" in output
    code, stats = fivefold("stats", "run")
    assert code == 0
    for reason in ("quality.few_words", "duplicate.exact", "repetition."):
        assert reason in stats
    assert "languages: en: 10" in stats
    code, shown = fivefold("inspect", "run", "--dropped-by", "duplicate", "-n", "3")
    assert code == 0
    assert "1 for `duplicate`; 1 shown" in shown
    code, shown = fivefold("inspect", "run", "--dropped-by", "repetition", "-n", "1")
    assert "repeat.html" in shown
    assert "[[" in shown
    for block in sorted((tmp_path / "run" / "page").iterdir()):
        drawn = draw_block(block)
        assert "warning" not in drawn
    assert "repeat.html" in draw_block(tmp_path / "run" / "page" / "50_dropped.json")


def documents_url(documents: list) -> str:
    """Return which of the two equal pages stayed."""
    return next(one.url for one in documents if one.url in ("3.html", "copy.html"))


def test_another_launch_does_nothing_and_a_changed_rule_only_what_follows(
    fivefold: Run, site: Path, tmp_path: Path
):
    arguments = ("run", "--out", "run", "dclm_baseline", str(site), "tasks=2")
    assert fivefold(*arguments)[0] == 0
    folder = tmp_path / "run"
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*-*/**/*") if p.is_file()}
    digest = digest_directory(folder / "documents")
    assert fivefold(*arguments)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*-*/**/*") if p.is_file()} == before
    assert digest_directory(folder / "documents") == digest
    assert fivefold(*arguments, "bloom=null")[0] == 0
    after = {p for p in folder.glob("*-*/**/*") if p.is_file()}
    assert {p.relative_to(folder).parts[0][:5] for p in after - before.keys()} == {"dedup", "decon"}
    (site / "0.html").write_text(page(77))
    assert fivefold(*arguments)[0] == 0
    assert digest_directory(folder / "documents") != digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nope"), "found 'nope'"),
        (("run", "dclm_baseline", "nowhere"), "instead of `nowhere`"),
        (("run", "dclm_baseline", "heuristic.mode=dclm"), "Did you mean `heuristics`"),
        (("run", "dclm_baseline", "site", "--out", "site"), "no run of Fivefold made"),
        (("run", "dclm_baseline", "site", "--classifier", "m.bin"), "`m.bin`"),
        (("stats", "nowhere"), "a finished run"),
        (("inspect", "nowhere", "--dropped-by", "x"), "a finished run"),
        (("train-classifier", "--positive", "site", "--negative", "void"), "instead of `void`"),
    ],
)
def test_mistakes_end_in_one_paragraph(
    fivefold: Run, site: Path, arguments: tuple[str, ...], message: str
):
    code, output = fivefold(*arguments)
    assert code == 2
    assert message in " ".join(output.split())


def test_unknown_reason_names_those_there_are(fivefold: Run, site: Path):
    fivefold("run", "dclm_baseline", str(site), "tasks=1", "--out", "run")
    code, output = fivefold("inspect", "run", "--dropped-by", "quality.bad")
    assert code == 2
    assert "quality.few_words" in output


def test_a_trained_classifier_serves_a_run(fivefold: Run, tmp_path: Path):
    for kind in ("good", "sale"):
        (tmp_path / kind).mkdir()
        for number in range(60):
            text = page(number)
            if kind == "sale":
                text = text.replace("river", "buy").replace("the", "cheap").replace(" of", " now")
            (tmp_path / kind / f"{number}.html").write_text(text)
    code, output = fivefold(
        "train-classifier", "dim=20", "buckets=1000", "epochs=50", "learning_rate=1.0",
        "--positive", "good", "--negative", "sale", "--out", "model",
    )  # fmt: skip
    assert code == 0
    assert "AUC" in output
    code, output = fivefold(
        "run", "dclm_baseline", "good", "sale", "heuristics=null", "language=null", "minhash=null",
        "bloom=null", "--classifier", "model/model.bin", "--keep-share", "0.5", "--out", "run",
    )  # fmt: skip
    assert code == 0
    assert "sources: good: 60" in output
    assert json.loads((tmp_path / "run/summary.json").read_text())["sources"] == {"good": 60}


@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_every_action_explains_itself(fivefold: Run, command: str):
    code, output = fivefold(command, "--help")
    assert code == 0
    assert (DATA_COMMANDS[command].__doc__ or "").split()[0] in output


def test_help_and_stats_do_not_wait_for_the_engine(fivefold: Run, site: Path, tmp_path: Path):
    fivefold("run", "--out", "run", "dclm_baseline", str(site), "tasks=1")
    code = (
        "import sys; from fivefold.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'datatrove', 'torch', 'pyarrow', 'fasttext'} & set(sys.modules)"
    )
    for arguments in (["run", "--help"], ["stats", "run"]):
        command = [sys.executable, "-c", code, "data", *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


def test_cut_accounts_are_named(fivefold: Run, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    for content, message in (("{", "a finished run"), ('{"url": {}}', "the accounts of a run")):
        (tmp_path / "run" / "accounts.json").write_text(content)
        code, output = fivefold("stats", "run")
        assert code == 2
        assert message in " ".join(output.split())


@pytest.mark.slow
def test_killed_command_goes_on_with_other_workers_to_the_same_bytes(tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    for number in range(400):
        (site / f"{number}.html").write_text(page(number, sentences=30))
    digests = []
    for name, kills in (("whole", 0), ("killed", 3)):
        out = tmp_path / name
        for attempt in range(kills + 1):
            command = [
                sys.executable, "-m", "fivefold", "data", "run", "dclm_baseline", str(site),
                "--out", str(out), "--workers", str(1 + attempt % 2),
            ]  # fmt: skip
            process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
            if attempt < kills:
                wanted = 3 * (attempt + 1)
                while len(list(out.glob("*/log/completions/*"))) < wanted:
                    assert process.poll() is None, "the run ended before it was killed"
                    time.sleep(0.005)
                os.killpg(process.pid, signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
            else:
                assert process.wait() == 0
        digests.append((digest_directory(out / "documents"), (out / "accounts.json").read_bytes()))
    assert digests[0] == digests[1]
