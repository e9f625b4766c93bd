# Typographic and full-width marks, and other scripts, are what is tested.
# ruff: noqa: RUF001

import pytest
import regex
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.curate.character import LETTER, MARK, PUNCTUATION, TERMINAL, kind_table
from fivefold.data.curate.words import (
    count_chunks,
    count_sentences,
    treebank_words,
    unicode_segments,
    unicode_words,
)

# Letters, digits, joints, marks and Chinese: where the rules of UAX 29 meet. No vowels: before
# them the oracle, unlike UAX 29, always breaks at an apostrophe.
ALPHABET = "bczñλЖ019_.,:;'’·-!? \n\t中文字のカタ#"


def by_uax29(text: str) -> list[str]:
    """Segments by the `regex` module's own default word boundaries."""
    return [part for part in regex.split(r"(?V1w)\b", text) if part]


@given(
    st.text(ALPHABET, max_size=30).filter(lambda text: not regex.search("_[カタ]|[カタ]_", text))
)
def test_unicode_words_are_uax29_segments(text: str):
    expected = [part for part in by_uax29(text) if part[0].isalnum()]
    assert unicode_words(text) == expected


def test_unicode_words_of_real_pages_are_uax29_segments(pages: list[str]):
    for page in pages[::7]:
        # Not followed here: emoji's joiners, vowel signs of Indian scripts, powers as superscripts.
        if any(0x0900 <= ord(c) <= 0x0E7F or ord(c) >= 0xFE00 or c in "²³" for c in page):
            continue
        page = page.replace("'", "").replace("’", "")
        assert unicode_words(page) == [part for part in by_uax29(page) if part[0].isalnum()]


@given(st.text(ALPHABET, max_size=40))
def test_segments_lose_only_white_space(text: str):
    segments = unicode_segments(text)
    assert "".join(segments).replace("\n", "") == "".join(text.split())
    assert segments.count("\n") == text.count("\n")


@given(st.text(ALPHABET, max_size=40))
def test_count_chunks_is_the_literal_count(text: str):
    chunks = regex.split(r"[ \n\r\t\v\f\0]+", text)
    assert count_chunks(text) == sum(bool(chunk) and chunk[0].isalnum() for chunk in chunks)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, world!", "Hello , world !"),
        ("I can't, e.g. (i.e. that)", "I ca n't , e.g. ( i.e. that )"),
        ("in 3.5 well-known U.S. cases", "in 3.5 well - known U.S. cases"),
        ("_x_ $5.00 a/b 10% John's", "_ x _ $ 5.00 a / b 10 % John 's"),
        ("see www.x.com/a-b.", "see www.x.com/a-b ."),
        ("they've cannot", "they 've can not"),
    ],
)
def test_treebank_words_are_spacys(text: str, words: str):
    """Expected values are what spaCy's blank English tokenizer gives."""
    assert treebank_words(text) == words.split()


@given(st.text(ALPHABET + '()[]"$%/<>', max_size=40))
def test_treebank_words_lose_only_white_space(text: str):
    words = treebank_words(text)
    assert "".join(words) == "".join(text.split())
    assert all(words)


def test_sentences_begin_after_a_terminal_mark():
    assert count_sentences(treebank_words("One. Two! Three? Four")) == 4
    assert count_sentences(treebank_words("It costs 3.50, e.g. at Mr. Lee's.")) == 1
    assert count_sentences(treebank_words('He said "No." Then he left.')) == 2
    assert count_sentences([]) == 0


def test_kinds_of_characters_are_datatroves():
    assert TERMINAL == TERMINAL_PUNCTUATION
    assert PUNCTUATION == PUNCTUATION_SET
    table = kind_table()
    assert table[ord("a")] == table[ord("中")] == LETTER
    assert table[ord("!")] == MARK
    assert table[ord("1")] == 0
