"""Words as numbers: what is looked up equals what is measured, whatever was learnt before."""

# Typographic marks and other scripts are what is tested.
# ruff: noqa: RUF001

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.curate import lexicon
from fivefold.data.curate.character import LETTER, MARK, PUNCTUATION
from fivefold.data.curate.lexicon import Lexicon, measure_words
from fivefold.data.curate.words import (
    split_chunk,
    treebank_words,
    unicode_segments,
    unicode_words,
)

ALPHABET = "abcd19_.,:'’-!?()$ \n\t中文ж…"
SPLITTERS = [
    (split_chunk, treebank_words),
    (unicode_words, unicode_words),
    (unicode_segments, lambda text: [one for one in unicode_segments(text) if one != "\n"]),
]
Splitter = Callable[[str], list[str]]


def assert_same(read: Lexicon, text: str, expected: list[str]):
    words = read.read(text)
    assert words.table.tolist() == measure_words(expected).table.tolist()
    assert words.spell(0, len(words)) == expected
    middle = len(words) // 2
    assert words.spell(middle, len(words)) == expected[middle:]
    assert int(words.ends[-1]) == len(words) if text.split() else not len(words)


@pytest.mark.parametrize(("split", "whole"), SPLITTERS)
def test_words_of_real_pages_are_those_of_the_whole_text(
    split: Splitter, whole: Splitter, pages: list[str]
):
    read = Lexicon(split)
    for page in pages[::25]:
        assert_same(read, page, whole(page))


@given(st.lists(st.text(ALPHABET, max_size=30), max_size=4), st.sampled_from(SPLITTERS))
def test_words_of_made_texts_do_not_depend_on_what_was_read_before(
    texts: list[str], splitters: tuple[Splitter, Splitter]
):
    split, whole = splitters
    read = Lexicon(split)
    for text in [*texts, *texts]:
        assert_same(read, text, whole(text))


def test_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lexicon, "_MOST_CHUNKS", 5)
    read = Lexicon(split_chunk)
    for number in range(12):
        text = f"one two{number}, three-{number} can't (four{number})"
        assert_same(read, text, treebank_words(text))


def test_texts_without_spaces_are_not_learnt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Lexicon, "_learn", None)
    text = "我们在山上住了三年，每天都有人来看花园。" * 3
    assert_same(Lexicon(unicode_words), text, unicode_words(text))


@given(st.lists(st.text(ALPHABET.replace(" ", ""), min_size=1, max_size=9), max_size=9))
def test_kinds_and_lengths_are_those_of_the_characters(words: list[str]):
    measured = measure_words(words)
    assert measured.lengths.tolist() == [len(word) for word in words]
    assert ((measured.kinds & LETTER) != 0).tolist() == [
        any(map(str.isalpha, word)) for word in words
    ]
    assert ((measured.kinds & MARK) != 0).tolist() == [set(word) <= PUNCTUATION for word in words]


@given(st.text("abcdж中", min_size=1, max_size=12), st.text("abcdж中", min_size=1, max_size=12))
def test_letters_of_joined_words_follow_from_those_of_each(first: str, second: str):
    one, other, both = (measure_words([word]) for word in (first, second, first + second))
    joined = int(one.letters[0]) + int(one.powers[0]) * int(other.letters[0])
    assert joined % (1 << 64) == int(both.letters[0])
    assert int(one.powers[0]) * int(other.powers[0]) % (1 << 64) == int(both.powers[0])


def test_blocks_of_words_are_measured_as_one(monkeypatch: pytest.MonkeyPatch):
    words = treebank_words("Nobody came to see it, and of the children two remembered.")
    whole = measure_words(words).table.tolist()
    monkeypatch.setattr(lexicon, "_WORDS_AT_ONCE", 4)
    assert measure_words(words).table.tolist() == whole
    assert measure_words([]).table.shape == (4, 0)
