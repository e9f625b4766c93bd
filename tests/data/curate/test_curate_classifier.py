import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.config import validate
from fivefold.data.curate import classify_step
from fivefold.data.curate.account import QuarantineError
from fivefold.data.curate.classifier import (
    area_under_curve,
    load_classifier,
    score_threshold,
    train_classifier,
)
from fivefold.data.curate.classify_step import read_scores, score_file
from fivefold.data.curate.config import (
    ClassifierTrainingConfig,
    CurateConfig,
    QualityClassifierConfig,
)
from fivefold.data.curate.dclm_baseline import Curated, run_dclm_baseline, stage_folders
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.data.document import Document, document_id, document_writer, read_documents
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

SMALL = ClassifierTrainingConfig(dim=20, buckets=5000, epochs=20, learning_rate=0.5)
PLAIN = CurateConfig(url=None, language=None, heuristics=None, minhash=None, bloom=None, tasks=2)
SALE = "buy now cheap offer deal click shop cart order discount price sale"
scores_of = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=40)


def sale(number: int) -> str:
    random = Random(number)
    return " ".join(random.choices(SALE.split(), k=60))


def documents(write: Callable[[int], str], count: int, source: str) -> list[Document]:
    return [Document(document_id(source, str(n)), write(n), source, str(n)) for n in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, english: Callable[[int], str]) -> Path:
    out = tmp_path_factory.mktemp("classifier")
    train_classifier(documents(english, 80, "good"), documents(sale, 80, "sale"), out, SMALL)
    return out


def test_what_differs_is_told_apart_on_texts_it_did_not_see(
    trained: Path, english: Callable[[int], str]
):
    facts = json.loads((trained / "classifier.json").read_text())
    assert facts["auc"] > 0.99
    assert facts["positives"] + facts["negatives"] + facts["heldout"] == 160
    assert facts["quantiles"] == sorted(facts["quantiles"])
    score = load_classifier(str(trained / "model.bin"), "high")
    assert score(english(5000)) > 0.9 > 0.1 > score(sale(5000))


def test_training_twice_gives_the_same_bytes_whatever_the_order(
    trained: Path, tmp_path: Path, english: Callable[[int], str]
):
    train_classifier(
        documents(english, 80, "good")[::-1], documents(sale, 80, "sale")[::-1], tmp_path, SMALL
    )
    assert (tmp_path / "model.bin").read_bytes() == (trained / "model.bin").read_bytes()
    assert (tmp_path / "classifier.json").read_bytes() == (trained / "classifier.json").read_bytes()


@given(scores_of, scores_of)
def test_area_under_curve_is_the_share_of_pairs_in_order(good: list[float], other: list[float]):
    pairs = [(a > b) + 0.5 * (a == b) for a in good for b in other]
    assert area_under_curve(np.array(good), np.array(other)) == pytest.approx(np.mean(pairs))


@given(scores_of, st.floats(0, 1))
def test_threshold_keeps_the_share_and_what_ties_with_its_last(scores: list[float], share: float):
    threshold = score_threshold(scores, share, None)
    kept = [score for score in scores if score >= threshold]
    count = round(share * len(scores))
    best = sorted(scores, reverse=True)
    assert sorted(kept, reverse=True) == best[: len(kept)]
    assert len(kept) >= count
    assert len([score for score in kept if score > min(kept, default=math.inf)]) < max(1, count)


def write_corpus(folder: Path, english: Callable[[int], str]) -> list[Shard]:
    folder.mkdir()
    with document_writer(folder / "a.jsonl.zst") as append:
        for one in [*documents(english, 30, "good"), *documents(sale, 70, "sale")]:
            append(one)
    return find_shards([folder])


def run(shards: list[Shard], model: Path, out: Path, **choice: float | None) -> Curated:
    classifier = QualityClassifierConfig.model_validate({"model": str(model), **choice})
    return run_dclm_baseline(shards, PLAIN.model_copy(update={"classifier": classifier}), out)


def test_another_threshold_asks_no_model_and_touches_nothing_upstream(
    trained: Path, tmp_path: Path, english: Callable[[int], str]
):
    shards, model = write_corpus(tmp_path / "in", english), trained / "model.bin"
    first = run(shards, model, tmp_path / "out", keep_share=0.3)
    assert first.summary.to_json()["sources"] == {"good": 30}
    assert first.accounts["quality"].drops == {"classifier.low_score": 70}
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*-*/**/*") if p.is_file()}
    second = run(shards, model, tmp_path / "out", keep_share=None, min_score=0.0)
    assert second.summary.documents == 100
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*-*/**/*") if p.is_file()}
    assert {p: after[p] for p in files} == files
    new = {p.relative_to(tmp_path / "out").parts[0] for p in after.keys() - files.keys()}
    assert [name.partition("-")[0] for name in new] == ["select"]


def test_scores_lie_beside_the_documents_and_go_into_them(
    trained: Path, tmp_path: Path, english: Callable[[int], str]
):
    shards, model = write_corpus(tmp_path / "in", english), trained / "model.bin"
    curated = run(shards, model, tmp_path / "out", keep_share=0.3)
    (file,) = (tmp_path / "out").glob("dedup-*/documents/*")
    ids, scores = read_scores(score_file(next((tmp_path / "out").glob("score-*")), file))
    score = load_classifier(str(model), "high")
    whole = list(read_documents(file))
    assert ids == [one.id for one in whole]
    np.testing.assert_allclose(scores, [score(one.text) for one in whole], atol=1e-6)
    for one in read_documents(curated.documents[0]):
        assert one.meta["quality"] == pytest.approx(score(one.text), abs=1e-4)
        assert one.meta["quality"] >= (curated.threshold or 0) - 1e-4


def test_a_model_that_fails_on_a_page_leaves_its_trace_in_the_quarantine(
    tmp_path: Path, english: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
):
    def fail(text: str) -> float:
        if text == english(7):
            raise ValueError("poisoned")
        return math.nan if text == english(8) else 0.5

    monkeypatch.setattr(classify_step, "load_classifier", lambda model, label: fail)
    shards, model = write_corpus(tmp_path / "in", english), tmp_path / "model.bin"
    model.write_bytes(b"any")
    classifier = QualityClassifierConfig(model=str(model), keep_share=None, min_score=0.1)
    config = PLAIN.model_copy(update={"classifier": classifier, "max_quarantined": 0.02})
    account = run_dclm_baseline(shards, config, tmp_path / "out").accounts["quality"]
    assert account.documents_out == 98
    traces = {one["url"]: one["trace"] for one in account.quarantined}
    assert 'raise ValueError("poisoned")' in traces["7"]
    assert "the model gave no number" in traces["8"]


def test_a_page_on_which_the_model_failed_takes_no_place_of_the_best_share(
    tmp_path: Path, english: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
):
    """Half of the 20 that have a score stay, not half of 30."""

    def fail(text: str) -> float:
        if int(text) >= 20:
            raise ValueError("poisoned")
        return int(text) / 20

    monkeypatch.setattr(classify_step, "load_classifier", lambda model, label: fail)
    with document_writer(tmp_path / "a.jsonl.zst") as append:
        for number in range(30):
            append(Document(str(number), str(number), "web", str(number)))
    model = tmp_path / "model.bin"
    model.write_bytes(b"any")
    classifier = QualityClassifierConfig(model=str(model), keep_share=0.5)
    config = PLAIN.model_copy(update={"classifier": classifier, "max_quarantined": 0.5})
    curated = run_dclm_baseline(find_shards([tmp_path / "a.jsonl.zst"]), config, tmp_path / "out")
    account = curated.accounts["quality"]
    assert (account.documents_out, len(account.quarantined)) == (10, 10)
    assert curated.threshold == 0.5


def test_a_model_that_failed_too_often_is_asked_again_once_it_is_mended(
    tmp_path: Path, english: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
):
    shards, model = write_corpus(tmp_path / "in", english), tmp_path / "model.bin"
    model.write_bytes(b"any")
    kept: dict[Path, int] = {}
    for mark in (math.nan, 0.5):
        monkeypatch.setattr(classify_step, "load_classifier", lambda *_, m=mark: lambda _: m)
        if math.isnan(mark):
            with pytest.raises(QuarantineError, match="the model gave no number"):
                run(shards, model, tmp_path / "out", keep_share=1.0)
            assert (tmp_path / "out" / "accounts.json").is_file()
            kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("dedup-*/**/*")}
    assert run(shards, model, tmp_path / "out", keep_share=1.0).summary.documents == 100
    assert kept
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_scores_of_before_traces_are_made_again_when_they_are_needed(
    trained: Path, tmp_path: Path, english: Callable[[int], str], caplog: pytest.LogCaptureFixture
):
    shards, model = write_corpus(tmp_path / "in", english), trained / "model.bin"
    run(shards, model, tmp_path / "out", keep_share=0.3)
    (folder,) = (tmp_path / "out").glob("score-*")
    for file in folder.glob("*.parquet"):
        parquet.write_table(parquet.read_table(file).drop_columns("trace"), file)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("[!s]*-*/**/*") if p.is_file()}
    with caplog.at_level("INFO"):
        again = run(shards, model, tmp_path / "out", keep_share=0.5)
    assert again.accounts["quality"].documents_out == 50
    assert "score: scores of an earlier version of Fivefold are made again" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_mistake_of_the_users_ends_the_run(
    tmp_path: Path, english: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
):
    def refuse(text: str) -> float:
        raise ConfigError(expected="a model", found="none", fix="Install it")

    monkeypatch.setattr(classify_step, "load_classifier", lambda model, label: refuse)
    model = tmp_path / "model.bin"
    model.write_bytes(b"any")
    with pytest.raises(ConfigError, match="Install it"):
        run(write_corpus(tmp_path / "in", english), model, tmp_path / "out")


def test_another_model_under_the_same_name_is_noticed(
    trained: Path, tmp_path: Path, english: Callable[[int], str]
):
    shards, model = write_corpus(tmp_path / "in", english), tmp_path / "model.bin"
    classifier = QualityClassifierConfig(model=str(model))
    config = PLAIN.model_copy(update={"classifier": classifier})
    model.write_bytes(b"one")
    before = stage_folders(shards, config, tmp_path)
    model.write_bytes(b"two")
    after = stage_folders(shards, config, tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["score", "select"]


def test_missing_and_foreign_models_are_named(
    trained: Path, tmp_path: Path, english: Callable[[int], str]
):
    with pytest.raises(MissingFileError, match=r"none\.bin"):
        load_classifier("none.bin", "high")
    (tmp_path / "text.bin").write_text("no model")
    with pytest.raises(CorruptFileError, match=r"text\.bin"):
        load_classifier(str(tmp_path / "text.bin"), "high")
    with pytest.raises(CorruptFileError, match=r"found (?:high, low|low, high)\."):
        load_classifier(str(trained / "model.bin"), "best")
    with pytest.raises(ConfigError, match="one of `keep_share` and `min_score`"):
        validate(QualityClassifierConfig, {"model": "m", "min_score": 0.5}, where="classifier")


def test_too_few_documents_are_refused(tmp_path: Path, english: Callable[[int], str]):
    with pytest.raises(ConfigError, match="negative documents"):
        train_classifier(documents(english, 80, "good"), [], tmp_path, SMALL)
