"""Natural long documents: lengths, repetition, the tails of bits per byte."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_builder import CacheModel, make_document, make_library, prose, word

from fivefold.data.curate.words import unicode_words
from fivefold.data.long.config import LongConfig, NaturalConfig
from fivefold.data.long.measure import Ruler
from fivefold.data.long.natural import Natural, score_bounds, self_overlap
from fivefold.data.long.scorer import BitsPerByte
from fivefold.text.tokenizer import Tokenizer

CHARACTERS = Ruler(None, 4.0)


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 4))
@settings(max_examples=100)
def test_self_overlap_against_brute_force(letters: list[str], n: int):
    text = " ".join(letters)
    words = unicode_words(text)
    seen: set[tuple[str, ...]] = set()
    repeats = 0
    runs = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
    for run in runs:
        repeats += run in seen
        seen.add(run)
    assert self_overlap(text, n) == pytest.approx(repeats / len(runs) if runs else 0)


def test_short_repeating_and_strange_documents_go_for_their_reason(tmp_path: Path):
    documents = [make_document(prose(0, n, 60), f"good/{n}") for n in range(10)]
    documents.append(make_document(prose(0, 99, 3), "short"))
    documents.append(make_document(prose(1, 1, 4) * 20, "log"))
    library = make_library(tmp_path, documents, CHARACTERS)
    own = NaturalConfig(min_tokens=500, perplexity_tails=0.1)
    config = LongConfig(natural=own)
    scores = {one.id: float(k) for k, one in enumerate(documents[:10])}
    for given_scores in (None, scores):
        method = Natural(library, config, given_scores)
        made = [one for unit in method.units(0, 1) for one in method.make(unit)]
        reasons = {one.document.url: one.reason for one in made}
        assert reasons["short"] == "natural.short"
        assert reasons["log"] == "natural.self_overlap"
        expected = dict.fromkeys((f"good/{n}" for n in range(10)), "")
        if given_scores:
            expected |= {"good/0": "natural.low_perplexity", "good/9": "natural.high_perplexity"}
        assert {url: reasons[url] for url in expected} == expected
        kept = [one.sequence for one in made if one.sequence]
        assert len(kept) == list(expected.values()).count("")
        assert {one.source for one in kept} == {"natural"}


def test_returning_rare_words_are_the_dependencies(tmp_path: Path):
    from random import Random

    rare = word(Random(77))
    filler = [prose(0, n, 30) for n in range(3)]
    text = f"The {rare} came.\n{filler[0]}{filler[1]}The {rare} went.\n{filler[2]}"
    library = make_library(tmp_path, [make_document(text, "story")], CHARACTERS, chunk_tokens=32)
    config = LongConfig(natural=NaturalConfig(min_tokens=100))
    method = Natural(library, config, None)
    made = method.make(next(method.units(0, 1)))
    assert made[0].sequence
    between = CHARACTERS.size(filler[0] + filler[1])
    gaps = [2**key for key in method.statistics.gaps]
    assert max(gaps) <= CHARACTERS.size(text)
    assert any(gap <= between < 2 * gap or gap <= between * 1.1 < 2 * gap for gap in gaps)


def test_bounds_are_quantiles():
    assert score_bounds([], 0.1) == (-math.inf, math.inf)
    assert score_bounds([*(float(k) for k in range(101)), math.nan], 0.05) == (5.0, 95.0)


def test_bits_per_byte_are_those_of_the_model(tokenizer: Tokenizer):
    model = CacheModel(tokenizer, context_tokens=50)
    text = "To be, or not to be: that is the question. " * 20
    ids = tokenizer.encode(text)
    sizes = tokenizer.token_bytes()
    last = len(ids) - 50
    rows = [ids[begin : begin + 50] for begin in (0, round(last / 2), last)]
    # Each token of this text costs RESTING nats, whatever it is.
    nats = sum((len(row) - 1) * CacheModel.RESTING for row in rows)
    size = sum(int(sizes[row[1:]].sum()) for row in rows)
    scored = BitsPerByte(model, 3).score([text, "", "To"])
    assert scored[0] == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    assert math.isnan(scored[1])
