"""EntropyLong on a model whose entropies are known in closed form."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from long_builder import CacheModel, make_document, make_library, prose, topic_words

from fivefold.data.long.config import EntropyLongConfig, LongConfig
from fivefold.data.long.entropylong import EntropyLong, uncertain_positions
from fivefold.data.long.library import Library
from fivefold.data.long.made import Made
from fivefold.data.long.measure import Ruler
from fivefold.errors import ConfigError
from fivefold.text.tokenizer import Tokenizer

OWN = EntropyLongConfig(
    root_tokens=350,
    min_root_tokens=100,
    skipped_tokens=8,
    candidates=8,
    chunk_tokens=96,
    max_roots=100,
)
CONFIG = LongConfig(context_tokens=1024, entropylong=OWN)


@pytest.fixture
def library(tmp_path: Path, tokenizer: Tokenizer) -> Library:
    """A root that asks for something, a document that tells it, others that only sound alike."""
    key = " ".join(topic_words(50)[:3])
    asks = prose(0, 1, 3) + f"The secret number of {key}~7\n" + prose(0, 2, 1)
    tells = f"The secret number of {key}~7\n" + prose(0, 3, 4)
    near = [f"A secret of {key} and the number\n" + prose(0, 10 + n, 4) for n in range(6)]
    far = [prose(topic, 50 + topic, 8) for topic in range(1, 6)]
    documents = [make_document(asks, "asks"), make_document(tells, "tells")]
    documents += [make_document(text, f"near/{n}") for n, text in enumerate(near)]
    documents += [make_document(text, f"far/{n}") for n, text in enumerate(far)]
    return make_library(tmp_path, documents, Ruler(tokenizer, 4.0), chunk_tokens=96)


def run(method: EntropyLong) -> dict[str, Made]:
    made = [one for unit in method.units(0, 1) for one in method.make(unit)]
    return {one.document.url: one for one in made}


def test_only_the_planted_context_passes(library: Library, tokenizer: Tokenizer):
    model = CacheModel(tokenizer)
    method = EntropyLong(library, CONFIG, Ruler(tokenizer, 4.0), model)
    made = run(method)
    assert set(made) == {one.url for one in library.documents}
    sequence = made["asks"].sequence
    assert sequence is not None
    (dependency,) = sequence.meta["dependencies"]
    tells = next(one for one in library.documents if one.url == "tells")
    assert dependency["document"] == tells.id
    # The closed forms, and not what the method computed.
    assert dependency["entropy"] == pytest.approx(model.surprised, abs=1e-3)
    gain = 1 - model.recalling / model.surprised
    assert dependency["gain"] == pytest.approx(gain, abs=1e-3)
    assert made["far/0"].reason == "entropylong.nothing_uncertain"
    asks = next(one for one in library.documents if one.url == "asks")
    assert sequence.text.endswith(asks.text.rstrip("\ufffd")[-40:])
    assert sequence.text.startswith("The secret number")


def test_position_of_the_dependency_is_the_one_that_was_asked(
    library: Library, tokenizer: Tokenizer
):
    method = EntropyLong(library, CONFIG, Ruler(tokenizer, 4.0), CacheModel(tokenizer))
    asks = next(k for k, one in enumerate(library.documents) if one.url == "asks")
    ids = tokenizer.encode(library.documents[asks].text)[:350]
    positions, found = method.find_dependencies(ids, asks)
    assert [one.position for one in found] == positions
    assert tokenizer.decode(ids[: positions[0]]).endswith("~")
    assert method.statistics.mean("verified positions") == 1
    assert method.statistics.mean("verified random pairs (control)") == 0
    # A copy of the question's surroundings recalls as well as what tells.
    model = CacheModel(tokenizer)
    ceiling = method.statistics.mean("gain of a verbatim copy (ceiling)")
    assert ceiling == pytest.approx(1 - model.recalling / model.surprised, abs=1e-5)
    # One of the eight chunks put to the test, and it was the one that tells.
    assert method.statistics.mean("verified pairs") == pytest.approx(1 / 8)


def test_a_higher_bar_than_the_gain_leaves_nothing(library: Library, tokenizer: Tokenizer):
    model = CacheModel(tokenizer)
    gain = 1 - model.recalling / model.surprised
    for bar, passes in ((gain - 0.01, True), (gain + 0.01, False)):
        own = OWN.model_copy(update={"min_gain": bar})
        config = CONFIG.model_copy(update={"entropylong": own})
        made = run(EntropyLong(library, config, Ruler(tokenizer, 4.0), model))["asks"]
        assert (made.sequence is not None) == passes
        assert made.reason == ("" if passes else "entropylong.nothing_verified")


def test_uncertain_positions_against_brute_force():
    config = EntropyLongConfig(
        skipped_tokens=5, apart_tokens=4, max_positions=6, deviations=1.0, min_root_tokens=64
    )
    for seed in range(30):
        random = np.random.default_rng(seed)
        entropy = random.gamma(1.0, size=120).astype(np.float32)
        is_word = random.random(120) < 0.7
        tail = entropy[5:].astype(np.float64)
        able = [
            place
            for place in range(5, 120)
            if is_word[place] and entropy[place] > tail.mean() + tail.std()
        ]
        chosen: list[int] = []
        while able and len(chosen) < 6:
            best = max(able, key=lambda place: (entropy[place], -place))
            chosen.append(best)
            able = [place for place in able if abs(place - best) >= 4]
        assert uncertain_positions(entropy, is_word, config) == sorted(chosen)


def test_chunks_are_shuffled_and_the_best_stay_where_room_is_short(
    tmp_path: Path, tokenizer: Tokenizer
):
    keys = [" ".join(topic_words(topic)[:3]) for topic in range(5)]
    random = Random(0)
    asks = "".join(prose(n, n, 1) + f"The number of {key}~7\n" for n, key in enumerate(keys))
    tells = [f"The number of {key}~7\n" + prose(n, 30 + n, 3) for n, key in enumerate(keys)]
    random.shuffle(tells)
    documents = [make_document(asks, "asks")]
    documents += [make_document(text, f"tells/{n}") for n, text in enumerate(tells)]
    ruler = Ruler(tokenizer, 4.0)
    library = make_library(tmp_path, documents, ruler, chunk_tokens=96)
    model = CacheModel(tokenizer, 1024)
    own = OWN.model_copy(update={"root_tokens": 700, "candidates": 2, "deviations": 1.5})
    counts = []
    for context_tokens in (700, 2048):
        config = CONFIG.model_copy(
            update={"entropylong": own, "context_tokens": context_tokens, "min_fill": 0.0}
        )
        sequence = run(EntropyLong(library, config, ruler, model))["asks"].sequence
        assert sequence is not None
        assert ruler.size(sequence.text) <= ruler.room(context_tokens)
        counts.append(len(sequence.meta["dependencies"]))
    assert counts[1] == 5
    assert 0 < counts[0] < 5


def test_a_model_with_too_short_a_context_is_refused(library: Library, tokenizer: Tokenizer):
    with pytest.raises(ConfigError, match="context"):
        EntropyLong(library, CONFIG, Ruler(tokenizer, 4.0), CacheModel(tokenizer, 150))
