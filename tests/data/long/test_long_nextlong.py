"""NExtLong: order of a root's parts, hard negatives, exact length."""

from pathlib import Path

import numpy as np
import pytest
from long_builder import make_document, make_library, prose

from fivefold.data.long.config import LongConfig, NextLongConfig
from fivefold.data.long.library import Library
from fivefold.data.long.made import Made, Unit
from fivefold.data.long.measure import Ruler
from fivefold.data.long.nextlong import NextLong
from fivefold.data.packing import pack_documents
from fivefold.text.tokenizer import Tokenizer

CONFIG = LongConfig(
    context_tokens=1024,
    nextlong=NextLongConfig(min_root_tokens=200, max_roots=100),
)


@pytest.fixture
def library(tmp_path: Path, tokenizer: Tokenizer) -> Library:
    documents = [
        make_document(prose(topic, 10 * topic + number, 30), f"{topic}/{number}")
        for topic in range(4)
        for number in range(6)
    ]
    # A copy with one more line: near, but no negative.
    copy = documents[0].text + "One more line.\n"
    documents.append(make_document(copy, "copy"))
    return make_library(tmp_path, documents, Ruler(tokenizer, 4.0))


def run(method: NextLong) -> list[Made]:
    return [made for unit in method.units(0, 1) for made in method.make(unit)]


def test_root_keeps_its_order_and_negatives_are_others(library: Library, tokenizer: Tokenizer):
    ruler = Ruler(tokenizer, 4.0)
    made = run(NextLong(library, CONFIG, ruler))
    assert [one.document for one in made] == library.documents
    assert sum(one.sequence is not None for one in made) >= 20
    for one in made:
        if one.sequence is None:
            assert one.reason == "nextlong.few_negatives"
            continue
        text, parts = one.sequence.text, one.sequence.meta["parts"]
        place = library.documents.index(one.document)
        own = [library.text(chunk) for chunk in library.chunks(place)]
        count = sum(part["document"] == one.document.id for part in parts)
        begins = [text.find(part) for part in own[: count - 1]]
        assert -1 not in begins
        assert begins == sorted(begins)
        assert begins[0] == 0
        assert all(p["cosine"] >= 0.05 for p in parts if p["document"] != one.document.id)
        # The last part may be cut off; nothing of the root stands twice.
        assert all(text.count(part) == 1 for part in own[: count - 1])


def test_length_is_that_of_a_row(library: Library, tokenizer: Tokenizer):
    lengths = [
        len(tokenizer.frame_document(tokenizer.encode(made.sequence.text)))
        for made in run(NextLong(library, CONFIG, Ruler(tokenizer, 4.0)))
        if made.sequence
    ]
    row = CONFIG.context_tokens + 1
    assert all(row - 3 <= length <= row for length in lengths)
    # As mid-training packs them: one sequence, one row.
    pack = pack_documents(np.array(lengths), CONFIG.context_tokens, "best_fit")
    assert pack.rows == len(lengths)
    assert pack.utilisation > 0.99


def test_negatives_are_far_more_similar_than_chance(library: Library, tokenizer: Tokenizer):
    method = NextLong(library, CONFIG, Ruler(tokenizer, 4.0))
    run(method)
    hard = method.statistics.mean("cosine of negatives")
    assert hard > method.statistics.mean("cosine of random chunks") + 0.1
    assert method.statistics.dependencies > 0


def test_a_copy_of_the_root_is_no_negative(library: Library, tokenizer: Tokenizer):
    method = NextLong(library, CONFIG, Ruler(tokenizer, 4.0))
    place = next(k for k, one in enumerate(library.documents) if one.url == "copy")
    original = next(one for one in library.documents if one.url == "0/0")
    made = method.make(Unit((library.documents[place],), (place,)))[0]
    assert made.sequence
    first = library.text(next(iter(library.chunks(place))))
    assert made.sequence.text.count(first) == 1
    assert original.id not in [part["document"] for part in made.sequence.meta["parts"]]


def test_too_little_text_for_the_context_drops_the_root(tmp_path: Path, tokenizer: Tokenizer):
    documents = [make_document(prose(0, number, 8), str(number)) for number in range(2)]
    library = make_library(tmp_path, documents, Ruler(tokenizer, 4.0))
    method = NextLong(library, CONFIG, Ruler(tokenizer, 4.0))
    assert {one.reason for one in run(method)} == {"nextlong.few_negatives"}
    assert method.statistics.sequences == 0


def test_chosen_roots_are_as_many_as_asked_and_depend_on_ids_alone(
    library: Library, tokenizer: Tokenizer
):
    some = NextLongConfig(min_root_tokens=200, max_roots=5)
    config = CONFIG.model_copy(update={"nextlong": some})
    made = run(NextLong(library, config, Ruler(tokenizer, 4.0)))
    assert sum(one.reason == "nextlong.not_chosen" for one in made) == len(made) - 5
    shares = [NextLong(library, config, Ruler(tokenizer, 4.0)).units(k, 3) for k in range(3)]
    places = sorted(unit.places[0] for share in shares for unit in share)
    assert places == list(range(len(library.documents)))
    assert np.unique(places).size == len(places)
