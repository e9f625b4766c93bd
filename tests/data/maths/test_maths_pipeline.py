"""The whole recipe on planted pages: reasons, tiers, workers, a kill, thresholds, faults."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from fivefold.data.curate.account import QuarantineError, check_chain, read_accounts
from fivefold.data.curate.classify_step import ReadScored
from fivefold.data.curate.config import MinHashConfig
from fivefold.data.curate.dclm_baseline import Curated
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.data.curate.shard import find_shards
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.maths import score_step
from fivefold.data.maths.calibration import Calibration, Rate
from fivefold.data.maths.config import (
    AdmitConfig,
    ChunkConfig,
    DistilConfig,
    MachineTextConfig,
    MathsConfig,
    ScorerConfig,
    SelectConfig,
    TemplateConfig,
)
from fivefold.data.maths.glm5_math import _tell_detector, maths_stage_folders, run_glm5_math
from fivefold.data.maths.score_step import ScoringError
from fivefold.errors import ConfigError, MissingFileError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
_FIELD = [
    "theorem",
    "lemma",
    "integer",
    "vector",
    "matrix",
    "polynomial",
    "derivative",
    "integral",
    "sequence",
    "limit",
    "function",
    "probability",
    "variance",
    "equation",
    "inequality",
    "triangle",
    "circle",
    "prime",
    "divisor",
    "convergence",
]
_PLAIN = [
    "reader",
    "house",
    "question",
    "answer",
    "point",
    "line",
    "case",
    "paper",
    "number",
    "place",
    "word",
    "letter",
    "garden",
    "window",
    "morning",
    "teacher",
    "student",
    "river",
    "bridge",
    "market",
]
_QUESTION = (
    "Mara's hens lay 16 eggs on each day of the week. She eats three of them for breakfast and "
    "sells the rest on the market for 2 dollars apiece. How many dollars does she earn each day?"
)


def lesson(number: int, field_share: float, sentences: int = 14) -> str:
    random = Random(number)
    words = []
    for _ in range(sentences):
        kinds = [_FIELD if random.random() < field_share else _PLAIN for _ in range(6)]
        nouns = [random.choice(kind) for kind in kinds]
        formula = rf"<span class='math'>\({random.choice('abc')}_{random.randint(1, 99)}\)</span>"
        words.append(
            f"Since the {nouns[0]} of the {nouns[1]} is in the {nouns[2]}, it is that a {nouns[3]} "
            f"with {formula if random.random() < field_share else 'some'} and the {nouns[4]} of it "
            f"is not the {nouns[5]} which they have."
        )
    return "".join(f"<p>{' '.join(words[k : k + 4])}</p>" for k in range(0, sentences, 4))


def write_sources(root: Path) -> list[Path]:
    """Write pages of each kind and the benchmark; return what is curated."""
    pages = root / "pages"
    pages.mkdir(parents=True)
    bodies = {f"lesson{k:02d}": lesson(k, 0.05 + 0.008 * k) for k in range(48)}
    bodies["copy"] = bodies["lesson07"]
    bodies["gossip"] = (
        "<p>" + "She and he went to the river in the morning with the dog. " * 12 + "</p>"
    )
    bodies["assistant"] = lesson(90, 1.0, 8) + (
        "<p>Certainly! Here is a proof. As an AI language model, I hope this helps! Feel free to "
        "ask for more. Is there anything else I can do? Let me know if you have questions.</p>" * 2
    )
    bodies["leak"] = lesson(91, 1.0) + f"<p>{_QUESTION.upper()}</p>" + lesson(92, 1.0)
    random = Random(4)
    for k in range(14):
        facts = "".join(
            f"<p>The integral of the function number {random.randint(1, 999)} over the interval "
            f"from {random.randint(1, 99)} to {random.randint(100, 999)} has the limit "
            f"{random.random()} in the theorem {random.randint(1, 99)} of part {line} of the list "
            "of all that is known.</p>"
            for line in range(8)
        )
        bodies[f"filled{k:02d}"] = facts
    for name, body in bodies.items():
        html = f"<html lang='en'><head><title>{name}</title></head><body>{body}</body></html>"
        (pages / f"{name}.html").write_text(html)
    rows = root / "hens.jsonl"
    rows.write_text(json.dumps({"question": _QUESTION, "answer": "26"}) + "\n")
    return [pages]


def config_for(root: Path, **changes: object) -> MathsConfig:
    human = tuple(str(FIXTURES / name) for name in ("plays.jsonl", "guide.md", "notes.jsonl"))
    config = MathsConfig(
        tasks=3,
        admit=AdmitConfig(min_words=60, min_signals=0.3, min_different=1),
        minhash=MinHashConfig(),
        templates=TemplateConfig(line_share=0.15),
        machine_text=MachineTextConfig(human=human, window_characters=300, false_positives=0.05),
        benchmarks=DecontaminationConfig(benchmarks=(str(root / "hens.jsonl"),)),
        distil=DistilConfig(min_labels=20, dimensions=128),
        select=SelectConfig(keep_share=0.5, high_share=0.25),
        max_quarantined=0.0,
    )
    return config.model_copy(update=changes)


def run(sources: Sequence[Path], config: MathsConfig, out: Path) -> Curated:
    return run_glm5_math(find_shards(sources), config, out)


def documents_of(curated: Curated) -> list[Document]:
    return [one for file in curated.documents for one in read_documents(file)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("maths")
    write_sources(root)
    return root


@pytest.fixture(scope="module")
def curated(root: Path) -> Curated:
    return run([root / "pages"], config_for(root), root / "out")


def test_every_planted_page_goes_for_its_reason(root: Path, curated: Curated):
    drops = {name: dict(account.drops) for name, account in curated.accounts.items()}
    assert drops == {
        "url": {},
        "extract": {},
        "language": {},
        "admit": {"admit.other_field": 1},
        "duplicates": {"duplicate.exact": 1},
        "templates": {"template.lines": 14},
        "machine_text": {"machine_text.tell": 1},
        "benchmarks": {"benchmark.hens": 1},
        "tiers": {"tier.low_score": 24},
    }
    assert curated.accounts["extract"].documents_in == 66
    samples = {r: s for account in curated.accounts.values() for r, s in account.samples.items()}
    assert samples["benchmark.hens"][0]["marked"].startswith("MARA'S HENS")
    assert samples["machine_text.tell"][0]["marked"].startswith("Certainly! Here is")
    assert samples["template.lines"][0]["marked"].startswith("The integral of the function number")


def test_what_stays_has_formulas_tiers_and_epochs(root: Path, curated: Curated):
    documents = documents_of(curated)
    assert len(documents) == 24
    assert sum("$" in one.text for one in documents) >= 20
    assert not any("\\(" in one.text for one in documents)
    tiers = json.loads((root / "out" / "tiers.json").read_text())
    for name, epochs in (("high", 3.2), ("mid", 1.0)):
        mine = [one for one in documents if one.meta["tier"] == name]
        assert tiers[name] == {
            "documents": len(mine),
            "bytes": sum(len(one.text.encode()) for one in mine),
            "epochs": epochs,
        }
        assert all(one.meta["epochs"] == epochs for one in mine)
    assert list(tiers) == ["high", "mid"]
    # The more of the field, the better: the first lessons are gone, the last ones are here.
    numbers = sorted(int(one.meta["title"][-2:]) for one in documents)
    assert sum(number >= 24 for number in numbers) >= 16
    agreement = json.loads((root / "out" / "agreement.json").read_text())
    assert agreement["learned"]
    assert agreement["spearman"] > 0.4
    detector = json.loads((root / "out" / "detector.json").read_text())
    calibration = detector["calibration"]
    assert set(calibration["sources"]) == {"guide", "notes", "plays"}
    assert calibration["pooled"]["bound"] <= 0.05
    for rate in calibration["sources"].values():
        assert rate["bound"] <= 0.05 or (rate["texts"] < calibration["needed"] == 59)


def test_rates_are_told_by_source_and_small_sources_by_name(caplog: pytest.LogCaptureFixture):
    sources = {"essays": Rate(680, 2, 0.0092), "letters": Rate(20, 0, 0.1391)}
    found = Calibration(1.0, Rate(700, 2, 0.0089), sources, 299)
    with caplog.at_level(logging.INFO, "fivefold"):
        _tell_detector(found, MachineTextConfig())
    rates, small = caplog.messages
    assert "2 of 700 (at most 0.89%)" in rates
    assert "essays 2 of 680 (at most 0.92%), letters 0 of 20 (at most 13.91%)" in rates
    assert "letters: fewer than 299 pieces" in small
    assert "essays" not in small


def test_another_threshold_asks_no_scorer_again(root: Path, curated: Curated):
    shards, config = find_shards([root / "pages"]), config_for(root)
    human = find_shards(config.machine_text.human) if config.machine_text else []
    before = maths_stage_folders(shards, human, [], config, root)
    other = config.model_copy(update={"select": SelectConfig(keep_share=0.25)})
    after = maths_stage_folders(shards, human, [], other, root)
    assert {name for name in before if before[name] != after[name]} == {"select"}
    moved = config.model_copy(update={"benchmarks": None})
    after = maths_stage_folders(shards, human, [], moved, root)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"benchmarks", "refuse", "label", "learn", "score", "select"}


@pytest.fixture
def earlier(root: Path, curated: Curated, tmp_path: Path) -> Path:
    """Return a copy of a finished run, whose first stages are used again."""
    return Path(shutil.copytree(root / "out", tmp_path / "out"))


def test_too_few_labels_let_the_scorer_judge_everything(root: Path, earlier: Path):
    config = config_for(root, distil=DistilConfig(min_labels=1_000, max_labels=1_000))
    left = documents_of(run([root / "pages"], config, earlier))
    # The rule gives round marks: documents that tie with the last one stay too.
    assert 24 <= len(left) <= 27
    assert json.loads((earlier / "agreement.json").read_text())["learned"] is False
    direct = documents_of(run([root / "pages"], config_for(root, distil=None), earlier))
    assert direct == left


def test_a_scorer_that_does_not_answer_ends_the_run(root: Path, earlier: Path):
    scorer = ScorerConfig(kind="endpoint", url="http://127.0.0.1:9", served_model="m", attempts=1)
    few = DistilConfig(max_labels=20, min_labels=20)
    with pytest.raises(ScoringError, match="without a mark"):
        run([root / "pages"], config_for(root, scorer=scorer, distil=few), earlier)


def test_a_scorer_that_failed_is_asked_again_once_it_is_mended(
    root: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch
):
    works = score_step.open_scorer
    for distil in (DistilConfig(max_labels=30, min_labels=20), None):
        config = config_for(root, distil=distil)
        monkeypatch.setattr(score_step, "open_scorer", lambda _: Mute())
        with pytest.raises(ScoringError, match="without a mark"):
            run([root / "pages"], config, earlier)
        monkeypatch.setattr(score_step, "open_scorer", works)
        assert len(documents_of(run([root / "pages"], config, earlier))) >= 24


class Mute:
    """Gives no text a mark."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return np.full(len(texts), math.nan)


class Deaf:
    """Marks by length; gives no mark to some lessons and breaks on others."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        if "hens lay" in texts[0]:
            raise ValueError("poisoned")
        return np.array([math.nan if "$a_1$" in text else len(text) for text in texts])


def test_a_document_without_a_mark_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(score_step, "open_scorer", lambda config: Deaf())
    file, scores = tmp_path / "a.jsonl.zst", tmp_path / "scores"
    texts = ["A lemma.", "The sum of $a_1$.", "Her hens lay 16 eggs.", "A theorem and its proof."]
    with document_writer(file) as append:
        for number, text in enumerate(texts):
            append(Document(str(number), text, "s", str(number)))
    list(score_step.ScoreMaths([file], ScorerConfig(), None, ChunkConfig(), scores, 9.0).run())
    select = SelectConfig(keep_share=1.0, high_share=0.5)
    edges = score_step.tier_edges(score_step.read_all_scores([file], scores), select)
    judge = score_step.AssignTiers(edges, select, tmp_path / "accounts", 9.0)
    assert [page.id for page in judge.run(ReadScored([file], scores).run())] == ["0", "3"]
    account = read_accounts(tmp_path / "accounts" / "tiers", 1)
    assert not account.drops
    traces = {one["id"]: one["trace"] for one in account.quarantined}
    assert traces.keys() == {"1", "2"}
    assert "the scorer gave none a mark" in traces["1"]
    assert 'raise ValueError("poisoned")' in traces["2"]
    with pytest.raises(QuarantineError, match="none a mark"):
        check_chain([("tiers", account)], 0.001)


def test_mistakes_are_named_before_any_work(root: Path, tmp_path: Path):
    nowhere = DecontaminationConfig(benchmarks=(str(root / "none"),))
    with pytest.raises(MissingFileError, match="benchmarks"):
        run([root / "pages"], config_for(root, benchmarks=nowhere), tmp_path)
    assert not list(tmp_path.iterdir())
    strict = MachineTextConfig(human=(str(FIXTURES / "guide.md"),))
    with pytest.raises(ConfigError, match="pieces of human text"):
        run([root / "pages"], config_for(root, machine_text=strict), tmp_path)
    assert not list(tmp_path.glob("extract-*"))


_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_maths_pipeline import config_for, run
root = Path(sys.argv[2])
run([root / "pages"], config_for(root, workers=int(sys.argv[4])), Path(sys.argv[3]))
"""


def test_a_killed_run_goes_on_with_other_workers_to_the_same_bytes(
    root: Path, curated: Curated, tmp_path: Path
):
    out = tmp_path / "out"
    command = [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent), str(root), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "1"], env=environment, start_new_session=True)
    deadline = time.monotonic() + 90
    while not list(out.glob("sign-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "accounts.json").exists()
    assert list(out.glob("extract-*/log/completions/*"))
    again = run([root / "pages"], config_for(root, workers=2), out)
    assert [file.read_bytes() for file in again.documents] == [
        file.read_bytes() for file in curated.documents
    ]
    for name in ("accounts.json", "tiers.json", "agreement.json", "detector.json"):
        assert (out / name).read_bytes() == (root / "out" / name).read_bytes()
