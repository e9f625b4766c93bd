from pathlib import Path

import pytest
from data_builder import make_document
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.document import document_writer
from fivefold.data.haystack import cut_into_units, read_haystack
from fivefold.errors import ConfigError
from fivefold.text.tokenizer import Tokenizer

PROSE = "The tide comes in twice a day. Who would have thought it? The moon does it all.\n\n"


def write(folder: Path, texts: list[str]) -> Path:
    path = folder / "train.jsonl.zst"
    with document_writer(path) as add:
        for number, text in enumerate(texts):
            add(make_document(text, str(number)))
    return path


@given(text=st.text("ab .!\n", max_size=600))
def test_units_together_are_the_text(text: str):
    units = cut_into_units(text)
    assert "".join("".join(units).split()) == "".join(text.split())
    assert all(unit.strip() and len(unit) <= 120 for unit in units)


def test_units_are_sentences_where_these_are_short():
    units = cut_into_units("One is short. Two is, too! And\nthree?\n\nFour")
    assert units == ["\n\nOne is short.", " Two is, too!", " And\nthree?", "\n\nFour"]


def test_words_are_not_cut_where_there_are_spaces():
    words = [f"word{number}" for number in range(100)]
    units = cut_into_units(" ".join(words))
    assert [word for unit in units for word in unit.split()] == words


def test_order_of_the_file_does_not_matter(tmp_path: Path, tokenizer: Tokenizer):
    texts = [f"Page {number}. " + PROSE for number in range(30)]
    haystack = read_haystack(write(tmp_path, texts), 10**6, 64, tokenizer, seed=1)
    path = tmp_path / "reversed.jsonl.zst"
    with document_writer(path) as add:
        for number, text in reversed(list(enumerate(texts))):
            add(make_document(text, str(number)))
    again = read_haystack(path, 10**6, 64, tokenizer, seed=1)
    assert again.units == haystack.units
    assert haystack.tokens.tolist() == [len(tokenizer.encode(unit)) for unit in haystack.units]


def test_other_languages_and_dense_lines_are_left_out(tmp_path: Path, tokenizer: Tokenizer):
    dense = "|_+~" * 25
    texts = [PROSE * 20, "海上生明月" * 100, PROSE * 10 + dense]
    haystack = read_haystack(write(tmp_path, texts), 10**6, 64, tokenizer, seed=1)
    text = "".join(haystack.units)
    assert text.count("The moon") == 30
    assert "海" not in text
    assert "|_+~" not in text


def test_no_more_is_read_than_is_needed(tmp_path: Path, tokenizer: Tokenizer):
    texts = [PROSE * 10] * 50
    haystack = read_haystack(write(tmp_path, texts), 400, 64, tokenizer, seed=1)
    assert 400 <= haystack.tokens.sum() < 2000


@given(begin=st.integers(0, 10**6), budget=st.integers(0, 2000))
def test_stretch_fills_its_budget_going_round(begin, budget, tmp_path_factory, tokenizer):
    haystack = read_haystack(
        write(tmp_path_factory.mktemp("h"), [PROSE * 4]), 10**6, 64, tokenizer, seed=1
    )
    count = len(haystack.units)
    chosen = haystack.stretch(begin, budget)
    assert chosen == [(begin + place) % count for place in range(len(chosen))]
    used = int(haystack.tokens[chosen].sum())
    assert used <= budget < used + haystack.tokens[(begin + len(chosen)) % count]


def test_too_little_text_is_an_error(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(ConfigError, match="heldout_bytes"):
        read_haystack(write(tmp_path, [PROSE]), 10**6, 1024, tokenizer, seed=1)
