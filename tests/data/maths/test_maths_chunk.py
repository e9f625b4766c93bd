"""Long documents: where they are cut, which parts are scored, closed forms of the joined score."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.maths.chunk import (
    aggregate,
    choose_parts,
    cut_parts,
    is_reference_list,
    join_parts,
    score_parts,
)
from fivefold.data.maths.config import ChunkConfig
from fivefold.data.maths.head import spearman

CONFIG = ChunkConfig()
MARKS = st.lists(st.floats(0, 5), min_size=1, max_size=12)


class Marker:
    """Gives the mark that a part names; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([float(text.split("mark=")[1][0].strip() or "nan") for text in texts])


def document(marks: str, size: int = 90) -> str:
    return "\n\n".join(f"mark={mark} ".ljust(size, "x") for mark in marks)


def test_joined_score_is_the_closed_form():
    # Ten equal parts, one of them bad: the trimmed mean forgets it, the deviation does not.
    scores = [0.0] + [4.0] * 9
    sigma = math.sqrt(0.1 * 3.6**2 + 0.9 * 0.4**2)
    expected = 0.7 * (4.0 - 0.25 * sigma) + 0.3 * 4.0
    assert aggregate(scores, [1] * 10, CONFIG) == pytest.approx(expected, abs=1e-12)
    # Half good, half bad, weights 1:1; 0.1 of the worst is left out: mean (0.4*1 + 0.5*5) / 0.9.
    half = aggregate([1.0, 5.0], [2, 2], CONFIG)
    assert half == pytest.approx(0.7 * ((0.4 * 1 + 0.5 * 5) / 0.9 - 0.25 * 2) + 0.3 * 1.0)
    plain = ChunkConfig(trimmed=0, spread_penalty=0, coverage=0)
    assert aggregate([1.0, 4.0], [3, 1], plain) == pytest.approx(1.75)


@given(st.floats(0, 5), st.lists(st.integers(1, 9000), min_size=1, max_size=8))
def test_equal_parts_give_their_own_score(mark: float, weights: list[int]):
    assert aggregate([mark] * len(weights), weights, CONFIG) == pytest.approx(mark, abs=1e-9)


@given(MARKS, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_bounds_hold(marks: list[float], random):
    pairs = [(mark, 1 + k % 5) for k, mark in enumerate(marks)]
    before = aggregate([m for m, _ in pairs], [w for _, w in pairs], CONFIG)
    random.shuffle(pairs)
    after = aggregate([m for m, _ in pairs], [w for _, w in pairs], CONFIG)
    assert after == pytest.approx(before, abs=1e-9)
    assert min(marks) - 1e-9 <= before <= max(marks) + 1e-9


def test_parts_cover_the_text_and_keep_code_whole():
    code = "```\n" + "\n\n".join(["line of code"] * 20) + "\n```"
    text = "\n\n".join(["A paragraph of text. " * 4, code, "Another one. " * 8, "The last. " * 9])
    parts = cut_parts(text, 200)
    assert "".join(text[a:b] for a, b in parts) == text
    assert sum("```" in text[a:b] for a, b in parts) == 1
    assert cut_parts("short", 200) == [(0, 5)]


def test_references_are_not_scored_unless_there_is_nothing_else():
    references = "References\n" + "\n".join(
        f"[{k}] A. Author, Title, {1990 + k}." for k in range(9)
    )
    text = "Good text. " * 30 + "\n\n" + references
    parts = cut_parts(text, 350)
    assert all("Author" not in text[a:b] for a, b in parts)
    assert len(cut_parts(references, 10_000)) == 1
    assert is_reference_list("\n".join(f"[{k}] A. Author, 200{k}" for k in range(8)))
    assert not is_reference_list("1. First we show it.\n2. Then we are done.\n" * 4)


def test_first_last_and_even_parts_are_chosen():
    assert choose_parts(5, 16) == [0, 1, 2, 3, 4]
    assert choose_parts(100, 5) == [0, 25, 50, 74, 99]
    assert len(choose_parts(1000, 16)) == 16


def test_restless_documents_are_sampled_twice():
    config = ChunkConfig(chunk_characters=100, max_chunks=4)
    calm, restless = Marker(), Marker()
    score_parts(document("3" * 20), "", calm, config)
    parts = score_parts(document("05" * 10), "", restless, config)
    assert len(calm.asked) == 4
    assert len(restless.asked) == len(parts) == len({part.begin for part in parts})
    assert len(parts) == 8
    assert [part.begin for part in parts] == sorted(part.begin for part in parts)


def test_title_stands_before_the_parts_of_a_long_document_only():
    config = ChunkConfig(chunk_characters=100)
    long, short = Marker(), Marker()
    score_parts(document("12"), "On marks", long, config)
    score_parts(document("1"), "On marks", short, config)
    assert all(text.startswith("On marks\n\nmark=") for text in long.asked)
    assert not short.asked[0].startswith("On marks")


def test_failed_parts_are_left_out_and_all_failed_is_no_score():
    config = ChunkConfig(chunk_characters=100)
    parts = score_parts(document("4 4"), "", Marker(), config)
    assert math.isnan(parts[1].score)
    assert join_parts(parts, config) == pytest.approx(4)
    assert math.isnan(join_parts(parts[1:2], config))


def test_spliced_documents_are_ranked_better_than_by_their_heads():
    random = np.random.default_rng(3)
    config, truth, whole, head = ChunkConfig(chunk_characters=100), [], [], []
    for _ in range(80):
        marks = random.choice([1, 2, 3, 4, 5], size=12, p=random.dirichlet([1] * 5))
        parts = score_parts(document("".join(map(str, marks))), "", Marker(), config)
        truth.append(marks.mean())
        whole.append(join_parts(parts, config))
        head.append(parts[0].score)
    assert spearman(np.array(truth), np.array(whole)) > 0.9
    assert (
        spearman(np.array(truth), np.array(whole)) > spearman(np.array(truth), np.array(head)) + 0.1
    )
