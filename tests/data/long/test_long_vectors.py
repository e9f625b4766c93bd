"""Vectors, neighbours, chunks and sizes."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_builder import prose

from fivefold.data.long.chunk import cut_into_chunks
from fivefold.data.long.measure import Ruler
from fivefold.data.long.vectors import HashedTfidf, content_words, nearest
from fivefold.text.tokenizer import Tokenizer

CHARACTERS = Ruler(None, 4.0)


def full_tfidf_cosine(first: str, second: str, frequencies: dict[str, int], count: int) -> float:
    """The cosine without hashing."""
    vectors = [
        {
            word: (1 + math.log(times)) * math.log((1 + count) / (1 + frequencies[word]))
            for word, times in Counter(content_words(text)).items()
        }
        for text in (first, second)
    ]
    product = sum(weight * vectors[1].get(word, 0) for word, weight in vectors[0].items())
    lengths = [math.sqrt(sum(weight**2 for weight in one.values())) for one in vectors]
    return product / (lengths[0] * lengths[1])


def test_hashed_cosines_are_those_of_tfidf_within_their_error():
    texts = [prose(topic, seed, 20) for topic in range(4) for seed in range(5)]
    frequencies: Counter[str] = Counter()
    for text in texts:
        frequencies.update(set(content_words(text)))
    dimensions = 1024
    vectors = HashedTfidf(frequencies, len(texts), dimensions).embed(texts)
    pairs = [(i, j) for i in range(20) for j in range(i)]
    errors = [
        float(vectors[i] @ vectors[j])
        - full_tfidf_cosine(texts[i], texts[j], frequencies, len(texts))
        for i, j in pairs
    ]
    assert np.std(errors) < 1.5 / math.sqrt(dimensions)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(20)
    same = [float(vectors[i] @ vectors[j]) for i, j in pairs if i // 5 == j // 5]
    other = [float(vectors[i] @ vectors[j]) for i, j in pairs if i // 5 != j // 5]
    assert min(same) > max(other)


def test_unknown_words_have_no_direction():
    vectors = HashedTfidf({"known": 1}, 10, 64).embed(["known known", "strange", ""])
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 15))
@settings(max_examples=50)
def test_nearest_is_a_stable_sort(seed: int, rows: int, count: int):
    random = np.random.default_rng(seed)
    # Few values, so that ties are everywhere.
    vectors = random.integers(-1, 2, size=(rows, 3)).astype(np.float32)
    queries = random.integers(-1, 2, size=(4, 3)).astype(np.float32)
    order, cosines = nearest(queries, vectors, count)
    brute = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :count]
    assert np.array_equal(order, brute)
    assert np.allclose(cosines, np.take_along_axis(queries @ vectors.T, brute, axis=1))


LINES = st.text(alphabet="ab \n\r\x0c\u2028é漢", max_size=60)


@given(LINES, st.integers(1, 8))
@settings(max_examples=150)
def test_chunks_cover_the_text_and_keep_to_their_size(text: str, most: int):
    chunks = cut_into_chunks(text, most, CHARACTERS)
    assert "".join(text[chunk.begin : chunk.end] for chunk in chunks) == text
    for chunk in chunks:
        lines = text[chunk.begin : chunk.end].rstrip().splitlines(keepends=True)
        assert CHARACTERS.sizes(lines).sum() <= most or len(lines) == 1


def test_long_lines_are_cut(tokenizer: Tokenizer):
    text = "word and " * 500
    chunks = cut_into_chunks(text, 100, Ruler(tokenizer, 4.0))
    assert "".join(text[chunk.begin : chunk.end] for chunk in chunks) == text
    assert all(chunk.tokens <= 110 for chunk in chunks)
    assert len(chunks) > 5


@pytest.mark.parametrize("text", ["The plays of 1599, it's said. ", "漢字と仮名 "])
def test_cut_is_a_beginning_of_almost_the_size(tokenizer: Tokenizer, text: str):
    ruler = Ruler(tokenizer, 4.0)
    whole = text * 30
    for tokens in (1, 2, 7, 50, 61):
        cut = ruler.cut(whole, tokens)
        assert whole.startswith(cut)
        assert tokens - 4 <= ruler.size(cut) <= tokens
    assert ruler.cut(whole, 10_000) == whole
