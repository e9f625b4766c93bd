"""Tiers, temperature, copies and back-off against closed forms."""

import math
from itertools import pairwise, permutations
from pathlib import Path
from random import Random

import pytest
from code_builder import python_text
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.code import score_step
from fivefold.data.code.backoff import (
    Labelled,
    choose_labels,
    load_backoff,
    nodes_of,
    shrink,
    train_backoff,
)
from fivefold.data.code.config import CodeClassifierConfig, SamplingConfig, TierConfig
from fivefold.data.code.quality import rule_score, tier_edges, tier_epochs
from fivefold.data.code.sampling import copies, language_weights, tiered_sizes
from fivefold.data.curate.account import read_accounts
from fivefold.data.curate.classify_step import ReadScored
from fivefold.data.curate.config import ClassifierTrainingConfig
from fivefold.data.document import Document, document_writer
from fivefold.errors import ConfigError, CorruptFileError

SCORES = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1)), min_size=1, max_size=60)


def test_documented_code_outranks_bare_and_cramped_code():
    good = python_text(1)
    bare = "\n".join(line for line in good.split("\n") if '"""' not in line and "#" not in line)
    cramped = "a=1;b=2;c=a+b;d=c*c;e=f(a,b);" * 5 + "\n"
    scores = [rule_score(text, "python") for text in (good, bare, cramped * 9)]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in [*scores, rule_score("", "python")])


@given(SCORES, st.randoms(use_true_random=False))
def test_tiers_hold_their_shares_whatever_the_order(scores: list[tuple[str, float]], random):
    config = TierConfig(min_files=5)
    edges = tier_edges(scores, config)
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert tier_edges(shuffled, config) == edges
    for language in {name for name, _ in scores}:
        own = [score for name, score in scores if name == language]
        tiers = [edges[language].tier(score) for score in own]
        if len(own) < 5:
            assert set(tiers) == {"mid"}
            continue
        # Ties share the better tier, so that `high` may be larger and `low` smaller.
        assert tiers.count("high") >= round(0.3 * len(own))
        assert tiers.count("low") <= round(0.2 * len(own))
        if len(set(own)) == len(own):
            assert tiers.count("high") == round(0.3 * len(own))
            assert tiers.count("low") == round(0.2 * len(own))


def test_tier_shares_above_one_are_refused():
    with pytest.raises(ValueError, match="high_share"):
        TierConfig(high_share=0.7, low_share=0.4)


def test_temperature_by_closed_form():
    config = SamplingConfig(temperature=0.5, min_share=0.0)
    weights = language_weights({"a": 900.0, "b": 100.0, "none": 0.0}, config)
    # Shares 0.75 and 0.25 of 1000 characters.
    assert weights == pytest.approx({"a": 750 / 900, "b": 2.5})
    flat = language_weights({"a": 900.0, "b": 100.0}, SamplingConfig(temperature=1.0, min_share=0))
    assert flat == pytest.approx({"a": 1, "b": 1})


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(1, 1e6), min_size=1),
    st.floats(0.1, 1),
    st.floats(0, 0.5),
)
def test_the_mixture_keeps_its_size_and_its_floor(sizes, temperature, floor):
    config = SamplingConfig(temperature=temperature, min_share=floor, max_epochs=1e9)
    weights = language_weights(sizes, config)
    total = sum(sizes.values())
    shares = {name: weights[name] * sizes[name] / total for name in sizes}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= min(floor, 1 / len(sizes)) * (1 - 1e-6)
    # A larger language never gets a smaller share.
    ordered = sorted(sizes, key=lambda name: sizes[name])
    for small, large in pairwise(ordered):
        assert shares[small] <= shares[large] * (1 + 1e-9)


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(1, 1e6), min_size=1),
    st.floats(1, 5),
)
def test_no_language_is_seen_too_often_and_others_take_what_is_left(sizes, cap):
    capped = language_weights(sizes, SamplingConfig(max_epochs=cap, min_share=0.0))
    free = language_weights(sizes, SamplingConfig(max_epochs=1e9, min_share=0.0))
    assert max(capped.values()) <= cap * (1 + 1e-6)
    # A cap of one and more can always be met without losing a character.
    total = sum(sizes.values())
    assert sum(capped[name] * size for name, size in sizes.items()) == pytest.approx(total)
    ratios = [capped[name] / free[name] for name in sizes if capped[name] < cap * (1 - 1e-6)]
    assert not ratios or max(ratios) == pytest.approx(min(ratios))
    assert not ratios or min(ratios) >= 1 - 1e-9


def test_copies_are_epochs_on_average_and_depend_on_the_file_alone():
    config, n = SamplingConfig(max_epochs=4), 4000
    for epochs in (0.0, 0.3, 1.0, 2.4, 9.0):
        found = [copies(str(i), epochs, config) for i in range(n)]
        expected = min(epochs, 4)
        share = expected - int(expected)
        assert set(found) <= {int(expected), int(expected) + 1}
        sigma = math.sqrt(share * (1 - share) / n)
        assert abs(sum(found) / n - expected) <= 4 * sigma
        assert found[7] == copies("7", epochs, config)


def test_sizes_count_what_tiers_are_seen():
    epochs = tier_epochs(TierConfig())
    files = [("a", "high", 100), ("a", "low", 999), ("b", "mid", 10)]
    for order in permutations(files):
        assert tiered_sizes(order, epochs) == {"a": 250.0, "b": 10.0}


def test_shrinkage_by_closed_form():
    assert shrink([0.5, None, None], [9, 0, 0], 500) == 0.5
    assert shrink([0.5, 0.9, None], [9, 500, 0], 500) == pytest.approx(0.7)
    assert shrink([0.5, 0.9, 0.1], [9, 500, 1500], 500) == pytest.approx(0.75 * 0.1 + 0.25 * 0.7)
    assert nodes_of("scala") == ("all", "family-jvm", "scala")
    assert nodes_of("no language") == ("all",)


def test_labels_are_the_extremes_whatever_the_order():
    config = CodeClassifierConfig(labelled_share=0.25, max_labels=20)
    ranked = [(i / 100, f"id{i:03d}") for i in range(100)]
    labels = choose_labels({"a": ranked}, config)
    assert choose_labels({"a": ranked[::-1]}, config) == labels
    assert sum(labels.values()) == 20
    assert len(labels) == 40
    for name, is_good in labels.items():
        assert int(name[2:]) >= 75 if is_good else int(name[2:]) < 25
    assert choose_labels({"a": ranked[:3]}, config) == {}


CONFIG = CodeClassifierConfig(
    min_labels=20,
    shrinkage=50,
    training=ClassifierTrainingConfig(
        dim=10, epochs=25, learning_rate=0.5, buckets=2000, heldout_share=0.25, max_characters=2000
    ),
)
GOOD, BAD = ["describe", "explain", "return", "clear", "result"], ["tmp", "foo", "xx", "bar", "qq"]


def labelled(language: str, count: int, start: int = 0) -> list[Labelled]:
    found = []
    for number in range(start, start + count):
        random, is_good = Random(f"{language}{number}"), number % 2 == 0
        words = " ".join(random.choice(GOOD if is_good else BAD) for _ in range(30))
        shared = " ".join(random.choice(["if", "for", "x", "="]) for _ in range(30))
        found.append(Labelled(f"{language}{number}", f"{words} {shared}", language, is_good))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    facts = train_backoff(
        [*labelled("java", 160), *labelled("scala", 20), *labelled("python", 160)], folder, CONFIG
    )
    assert set(facts) == {"all", "family-jvm", "family-script", "java", "python"}
    assert all(node["auc"] > 0.9 for node in facts.values())
    return folder


def test_a_rare_language_is_scored_by_its_family(models: Path):
    score = load_backoff(models)
    rare = labelled("scala", 40, start=500)
    good = [score(one.text, "scala") for one in rare if one.is_good]
    other = [score(one.text, "scala") for one in rare if not one.is_good]
    assert min(good) > max(other)
    # Languages without a model of their own get the family's score, unknown ones that of all.
    text = rare[0].text
    assert score(text, "scala") == score(text, "kotlin") != score(text, "java")
    assert score(text, "no language") == score(text, "swift")


def test_a_file_on_which_scoring_fails_is_quarantined_with_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(text: str, language: str) -> float:
        if text == "2":
            raise ValueError("poisoned")
        return 0.5

    monkeypatch.setattr(score_step, "rule_score", fail)
    file, scores = tmp_path / "a.jsonl.zst", tmp_path / "scores"
    with document_writer(file) as append:
        for name in "123":
            append(Document(name, name, "s", name, "python"))
    list(score_step.ScoreCode([file], scores, 9.0).run())
    plan = score_step.make_plan([file], scores, TierConfig(), SamplingConfig())
    judge = score_step.AssignTiers(plan, tmp_path / "accounts", 9.0)
    assert [page.id for page in judge.run(ReadScored([file], scores).run())] == ["1", "3"]
    account = read_accounts(tmp_path / "accounts" / "tiers", 1)
    assert [one["id"] for one in account.quarantined] == ["2"]
    assert 'raise ValueError("poisoned")' in account.quarantined[0]["trace"]


def test_a_mistake_of_the_users_is_no_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(text: str, language: str) -> float:
        raise ConfigError(expected="a lexer", found="none", fix="Install it")

    monkeypatch.setattr(score_step, "rule_score", refuse)
    file = tmp_path / "a.jsonl.zst"
    with document_writer(file) as append:
        append(Document("1", "1", "s", "1", "python"))
    with pytest.raises(ConfigError, match="Install it"):
        list(score_step.ScoreCode([file], tmp_path / "scores", 9.0).run())


def test_no_models_are_named(tmp_path: Path):
    with pytest.raises(CorruptFileError, match=r"backoff\.json"):
        load_backoff(tmp_path)
    with pytest.raises(ConfigError, match="0 and 0"):
        train_backoff([], tmp_path, CONFIG)
