from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.curate.bloom import BloomFilter
from fivefold.data.curate.config import BloomConfig
from fivefold.data.curate.dedup_step import DropDuplicates
from fivefold.data.curate.paragraph_dedup import ParagraphDedup
from fivefold.data.curate.step import document_to_page
from fivefold.data.curate.words import unicode_segments
from fivefold.data.document import Document


def test_false_positives_stay_near_the_target():
    random = np.random.default_rng(0)
    values = random.integers(0, 1 << 64, size=120_000, dtype=np.uint64)
    members, others = values[:20_000], values[20_000:]
    bloom = BloomFilter(20_000, 0.01)
    bloom.add(members)
    assert bloom.contains(members).all()
    assert bloom.contains(others).mean() <= 1.2 * 0.01
    assert 0.45 < bloom.fill_share() < 0.55


def test_filling_twice_gives_the_same_filter():
    values = np.arange(1000, dtype=np.uint64)
    one, other = BloomFilter(5000, 0.01), BloomFilter(5000, 0.01)
    one.add(values)
    for part in np.array_split(values[::-1], 7):
        other.add(part)
    probes = np.arange(100_000, dtype=np.uint64)
    assert (one.contains(probes) == other.contains(probes)).all()


@pytest.mark.parametrize(("expected", "is_told"), [(100, True), (4000, False)])
def test_a_filter_that_is_too_small_is_told(
    expected: int, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = BloomConfig(expected_ngrams=expected)
    text = "\n".join(" ".join(f"w{row}x{column}" for column in range(20)) for row in range(30))
    page = document_to_page(Document("id", text, "web"))
    page.metadata |= {"decision": "", "trace": None}
    step = DropDuplicates(config, tmp_path, 30)
    assert [one.text for one in step.run(iter([page]))]
    assert ("raise `bloom.expected_ngrams`" in caplog.text) == is_told


class Literal:
    """`old-both` with a set of n-grams instead of a filter, one paragraph after the other."""

    def __init__(self, config: BloomConfig):
        self.config = config
        self.seen: set[tuple[str, ...]] = set()

    def judge(self, text: str) -> str | None:
        kept, all_known, all_ngrams = [], 0, 0
        for number, line in enumerate(text.split("\n")):
            words = unicode_segments(line)
            n = self.config.max_ngram_words
            ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            if not ngrams and len(words) >= self.config.min_ngram_words:
                ngrams = [tuple(words)]
            known = sum(ngram in self.seen for ngram in ngrams)
            all_known, all_ngrams = all_known + known, all_ngrams + len(ngrams)
            if ngrams and known / len(ngrams) > self.config.threshold:
                continue
            self.seen.update(ngrams)
            kept.append(("\n" if number else "") + line)
        if all_ngrams and all_known / all_ngrams > self.config.threshold:
            return None
        return "".join(kept)


WORD = st.sampled_from("abcde")
LINE = st.lists(WORD, max_size=9).map(" ".join)
PAGE = st.lists(LINE, min_size=1, max_size=5).map("\n".join)


@settings(max_examples=300)
@given(st.lists(PAGE, min_size=1, max_size=6), st.sampled_from([(3, 3), (4, 2), (2, 1)]))
def test_pages_fare_as_with_a_plain_set(pages: list[str], sizes: tuple[int, int]):
    config = BloomConfig(
        max_ngram_words=sizes[0],
        min_ngram_words=sizes[1],
        false_positives=1e-9,
        expected_ngrams=10_000,
    )
    fast, literal = ParagraphDedup(config), Literal(config)
    for page in pages:
        verdict, expected = fast.judge(page), literal.judge(page)
        if expected is None or (not expected.strip() and page.strip()):
            assert verdict.reason == "duplicate.page"
        else:
            assert verdict.is_kept
            assert verdict.text == expected
            removed = sum(len(edit.removed) for edit in verdict.edits)
            assert len(page) == len(expected) + removed


class ByHashes(ParagraphDedup):
    """Gives the filter hashes to look up and again to learn, never places that it knows already."""

    def _look_up_and_learn(self, groups: list[np.ndarray]) -> np.ndarray:
        whole = np.concatenate([np.zeros(0, np.uint64), *groups])
        is_plain = len(np.unique(whole)) == len(whole)
        before = [self.filter.contains(group).sum() for group in groups]
        known = np.zeros(len(groups), dtype=np.int64)
        for index, group in enumerate(groups):
            known[index] = before[index] if is_plain else self.filter.contains(group).sum()
            if known[index] <= self.config.threshold * len(group):
                self.filter.add(group)
        return known


@settings(max_examples=300)
@given(st.lists(PAGE, min_size=1, max_size=8))
def test_places_that_are_used_twice_leave_the_same_verdicts_and_filter(pages: list[str]):
    # So small a filter takes many new n-grams for known ones: those must be the same ones too.
    config = BloomConfig(
        max_ngram_words=3, min_ngram_words=2, false_positives=0.2, expected_ngrams=60
    )
    fast, plain = ParagraphDedup(config), ByHashes(config)
    for page in pages:
        assert fast.judge(page) == plain.judge(page)
        assert (fast.filter._bytes == plain.filter._bytes).all()


def test_a_page_made_of_one_known_paragraph_and_a_new_one_keeps_the_new_one():
    """The trace of the rule on a hand-made case of six pages."""
    config = BloomConfig(expected_ngrams=10_000, false_positives=1e-6)
    known = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."
    fresh = "Once the river rose the old men carried every boat up to the houses on the hill."
    other = "Nobody had told her that the orchard was sold before the last of the apples fell."
    rule = ParagraphDedup(config)
    assert rule.judge(known).text == known
    verdict = rule.judge(f"{known}\n{fresh}\n{other}")
    assert verdict.text == f"\n{fresh}\n{other}"
    assert [edit.removed for edit in verdict.edits] == [known]
    assert rule.judge(known).reason == "duplicate.page"
    # Too short to be tested: it stays, and teaches nothing.
    assert rule.judge("A short line.").is_kept
    assert rule.judge("A short line.").is_kept
    assert rule.judge(f"{fresh}\n{other}").reason == "duplicate.page"
