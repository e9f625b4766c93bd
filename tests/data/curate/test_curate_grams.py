from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.curate.grams import (
    Grams,
    covered_characters,
    most_frequent,
    repeated,
    walked_characters,
)
from fivefold.data.curate.lexicon import measure_words

# Few short words, some of which run together to the same letters.
WORDS = st.lists(st.sampled_from(["x", "y", "xy", "yx", "xxy", "中"]), min_size=1, max_size=40)
SIZES = st.integers(1, 5)


def runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


@given(WORDS, SIZES)
def test_hashes_are_equal_for_equal_runs_only(words: list[str], n: int):
    grams, expected = Grams(measure_words(words)), runs(words, n)
    hashes = grams.hashes(n).tolist()
    assert len(hashes) == len(expected)
    assert len(set(zip(hashes, expected, strict=True))) == len(set(hashes)) == len(set(expected))
    joined = grams.joined_hashes(n).tolist()
    letters = ["".join(run) for run in expected]
    assert len(set(zip(joined, letters, strict=True))) == len(set(joined)) == len(set(letters))
    if expected:
        assert grams.run_lengths(n).tolist() == [len(run) for run in letters]


@given(WORDS, SIZES)
def test_most_frequent_is_the_counters(words: list[str], n: int):
    expected = runs(words, n)
    if not expected:
        return
    hashes = Grams(measure_words(words)).hashes(n)
    counts = Counter(expected)
    most = max(counts.values())
    for fewer in range(1, most):
        found = [places.tolist() for places in most_frequent(hashes, fewer)]
        assert found == [
            [i for i, run in enumerate(expected) if run == one]
            for one in counts
            if counts[one] == most
        ]
    assert most_frequent(hashes, most) == most_frequent(hashes, len(expected) + 1) == []


@given(WORDS, SIZES)
def test_covered_characters_count_each_word_once(words: list[str], n: int):
    grams, counts = Grams(measure_words(words)), Counter(runs(words, n))
    places, labels = repeated(grams.hashes(n))
    expected = [i for i, run in enumerate(runs(words, n)) if counts[run] > 1]
    assert places.tolist() == expected
    assert len(set(labels.tolist())) == sum(count > 1 for count in counts.values())
    inside = {i + k for i in expected for k in range(n)}
    covered = covered_characters(places, n, grams.lengths)
    assert covered == sum(len(words[i]) for i in inside)


@given(WORDS, SIZES)
def test_walked_characters_jump_as_the_plain_loop_does(words: list[str], n: int):
    grams = Grams(measure_words(words))
    if len(words) < n:
        return
    seen, index, expected = set(), 0, 0
    while index < len(words) - n + 1:
        run = "".join(words[index : index + n])
        if run in seen:
            expected += len(run)
            index += n
        else:
            seen.add(run)
            index += 1
    places, labels = repeated(grams.joined_hashes(n))
    assert walked_characters(places, labels, n, grams.run_lengths(n)) == expected


def test_hashes_do_not_collide_on_a_long_text():
    random = np.random.default_rng(0)
    words = [str(number) for number in random.integers(0, 10**9, size=100_000)]
    assert len(np.unique(Grams(measure_words(words)).hashes(5))) == len(words) - 4
