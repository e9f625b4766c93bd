"""Interleaved packing: the law of gaps, order inside a document, depth."""

import math
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from long_builder import make_document, make_library, prose
from scipy.stats import chisquare

from fivefold.data.long.config import InterleaveConfig, LongConfig
from fivefold.data.long.interleave import Interleave, gap_probability, riffle
from fivefold.data.long.library import Library
from fivefold.data.long.made import Made
from fivefold.data.long.measure import Ruler
from fivefold.text.tokenizer import Tokenizer

CONFIG = LongConfig(
    context_tokens=1500,
    interleave=InterleaveConfig(block_tokens=80, min_similarity=0.1, max_documents=5),
)


def test_gap_law_against_every_order():
    counts = (3, 2, 2)
    orders = set(permutations(np.repeat(np.arange(3), counts).tolist()))
    gaps: Counter[int] = Counter()
    for order in orders:
        places = [k for k, owner in enumerate(order) if owner == 0]
        gaps.update(later - before - 1 for before, later in pairwise(places))
    assert sum(gaps.values()) == 2 * math.comb(7, 3) * math.comb(4, 2)
    for gap in range(5):
        law = gap_probability(gap, 7, 3)
        assert gaps[gap] / sum(gaps.values()) == pytest.approx(law, abs=1e-12)
    assert sum(k * gap_probability(k, 7, 3) for k in range(5)) == pytest.approx((7 - 3) / (3 + 1))


def test_riffle_follows_the_law_and_prefers_no_depth():
    random = np.random.default_rng(5)
    counts, draws = (6, 3, 5, 4), 4000
    blocks = sum(counts)
    gaps: Counter[int] = Counter()
    depths: Counter[int] = Counter()
    for _ in range(draws):
        order = riffle(counts, random)
        assert Counter(order) == dict(enumerate(counts))
        places = [k for k, owner in enumerate(order) if owner == 1]
        # One gap a draw: those of one draw depend on each other.
        gaps[places[1] - places[0] - 1] += 1
        depths[places[int(random.integers(3))]] += 1
    law = np.array([gap_probability(k, blocks, 3) for k in range(blocks - 2)])
    assert law.sum() == pytest.approx(1)
    kept = law * draws >= 5
    found = np.array([gaps[k] for k in range(blocks - 2)])
    observed = np.append(found[kept], found[~kept].sum())
    expected = np.append(law[kept], law[~kept].sum()) * draws
    assert chisquare(observed, expected).pvalue > 1e-3
    uniform = np.array([depths[place] for place in range(blocks)])
    assert chisquare(uniform).pvalue > 1e-3


@pytest.fixture
def library(tmp_path: Path, tokenizer: Tokenizer) -> Library:
    documents = [
        make_document(prose(topic, 10 * topic + number, 12), f"{topic}/{number}")
        for topic in range(3)
        for number in range(7)
    ]
    documents.append(make_document(prose(9, 1, 12), "alone"))
    documents.append(make_document(documents[0].text + "And more.\n", "copy"))
    return make_library(tmp_path, documents, Ruler(tokenizer, 4.0))


def run(method: Interleave, tasks: int = 1) -> list[Made]:
    return [
        made
        for task in range(tasks)
        for unit in method.units(task, tasks)
        for made in method.make(unit)
    ]


def test_every_document_has_one_outcome_and_clusters_are_of_one_topic(
    library: Library, tokenizer: Tokenizer
):
    made = run(Interleave(library, CONFIG, Ruler(tokenizer, 4.0)))
    assert sorted(one.document.url for one in made) == sorted(d.url for d in library.documents)
    reasons = {one.document.url: one.reason for one in made}
    assert reasons["alone"] == "interleave.few_similar"
    names = {one.id: one.url for one in library.documents}
    placed: list[str] = []
    for one in made:
        if one.sequence:
            urls = [names[k] for k in one.sequence.meta["documents"]]
            assert len(urls) >= 3
            assert len({url[0] for url in urls if url != "copy"}) == 1
            assert not {"copy", "0/0"} <= set(urls)
            placed += urls
    assert sorted(placed) == sorted(url for url, reason in reasons.items() if not reason)


def test_blocks_of_a_document_keep_their_order(library: Library, tokenizer: Tokenizer):
    ruler = Ruler(tokenizer, 4.0)
    texts = {one.id: one.text for one in library.documents}
    found = 0
    for made in run(Interleave(library, CONFIG, ruler)):
        if made.sequence is None:
            continue
        text = made.sequence.text
        assert ruler.size(text) <= ruler.room(CONFIG.context_tokens)
        for document in made.sequence.meta["documents"]:
            lines = [line for line in texts[document].split("\n") if line and line in text]
            places = [text.index(line) for line in lines]
            assert places == sorted(places)
            found += len(places)
    assert found > 40


def test_headers_name_the_document_where_it_changes(library: Library, tokenizer: Tokenizer):
    for share, expected in ((0.0, False), (1.0, True)):
        own = InterleaveConfig(
            block_tokens=80, min_similarity=0.1, max_documents=5, header_share=share
        )
        config = CONFIG.model_copy(update={"interleave": own})
        for made in run(Interleave(library, config, Ruler(tokenizer, 4.0))):
            if made.sequence:
                assert made.sequence.text.startswith("[") == expected


def test_result_does_not_depend_on_tasks(library: Library, tokenizer: Tokenizer):
    def texts(tasks: int) -> list[str]:
        made = run(Interleave(library, CONFIG, Ruler(tokenizer, 4.0)), tasks)
        return sorted(one.sequence.text for one in made if one.sequence)

    assert texts(1) == texts(3)
    assert texts(1)
