# Typographic and full-width marks, and other scripts, are what is tested.
# ruff: noqa: RUF001

import pytest
import regex
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.curate import words
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


def peel_plainly(chunk: str) -> list[str]:
    """All of a chunk's patterns, each over all of the rest, without any look ahead."""
    begin, end, rest = [], [], chunk
    while rest:
        if (known := words._known(rest)) is not None:
            return [*begin, *known, *reversed(end)]
        if prefix := words._PREFIX.match(rest):
            begin.append(prefix.group())
            rest = rest[prefix.end() :]
            continue
        if words._URL.fullmatch(rest) and rest[-1] not in ".,;:!?)":
            return [*begin, rest, *reversed(end)]
        suffix = words._SUFFIX.search(rest)
        if suffix is None or suffix.start() == 0:
            break
        end.append(suffix.group())
        rest = rest[: suffix.start()]
    parts, start = [], 0
    for match in words._INFIX.finditer(rest):
        if match.start() == start == 0:
            continue
        parts += [rest[start : match.start()], match.group()]
        start = match.end()
    return [part for part in [*begin, *parts, rest[start:], *reversed(end)] if part]


STEMS = ["", "Mr", "cannot", "don", "a", "U.S", "e.g", "www.x.com", "km", "o'clock", "can't", "3.5"]


@given(
    st.text("bX0é.,:!?'’\"()]-–/+%$…~", max_size=4),
    st.sampled_from(STEMS),
    st.text("bX0.,;:!?'’\"”)]-/%kmgs²…", max_size=5),
)
def test_chunks_are_peeled_as_by_plain_loops(begin: str, stem: str, end: str):
    chunk = begin + stem + end
    assert not chunk or treebank_words(chunk) == peel_plainly(chunk)


def test_chunks_of_real_pages_are_peeled_as_by_plain_loops(pages: list[str]):
    for chunk in {chunk for page in pages[::25] for chunk in page.split()}:
        if not chunk.isalpha():
            assert treebank_words(chunk) == peel_plainly(chunk)


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
