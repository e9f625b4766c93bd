import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_builder import make_source
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.config import MixtureConfig, WeightPoint
from fivefold.data.loader import RowLoader, Rows, assemble_rows
from fivefold.data.packed_source import PackedSource
from fivefold.data.packing import pack_documents
from fivefold.errors import ConfigError, CorruptFileError, MismatchError

CONTEXT = 16


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[PackedSource]:
    folder = tmp_path_factory.mktemp("tokens")
    lengths = np.random.default_rng(1).integers(2, 60, size=(3, 30))
    return [
        make_source(folder, "web", lengths[0].tolist(), CONTEXT),
        make_source(folder, "code", lengths[1, :12].tolist(), CONTEXT),
        make_source(folder, "maths", lengths[2, :5].tolist(), CONTEXT),
    ]


def loader(sources: list[PackedSource], seed: int = 7, **config) -> RowLoader:
    return RowLoader(sources, pad_id=0, seed=seed, mixture=MixtureConfig(**config))


def assert_same(first: Rows, second: Rows) -> None:
    for name in ("ids", "document", "positions", "source"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def joined(parts: list[Rows]) -> Rows:
    names = ("ids", "document", "positions", "source")
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def test_rows_hold_the_tokens_that_the_pack_says(sources: list[PackedSource]):
    for source in sources:
        pack, rows = source.pack, assemble_rows(source, np.arange(source.pack.rows), pad_id=0)
        for row in range(pack.rows):
            ids, document, positions = [], [], []
            for number, piece in enumerate(range(pack.pointer[row], pack.pointer[row + 1])):
                begin, length = int(pack.start[piece]), int(pack.length[piece])
                ids += source.tokens.document(pack.document[piece])[begin : begin + length].tolist()
                document += [number] * length
                positions += range(length)
            padding = CONTEXT + 1 - len(ids)
            assert rows.ids[row].tolist() == ids + [0] * padding
            assert rows.document[row].tolist() == document + [-1] * padding
            assert rows.positions[row].tolist() == positions + [0] * padding


def test_rows_have_the_promised_types(sources: list[PackedSource]):
    rows = loader(sources).next_rows(6)
    assert rows.ids.dtype == rows.document.dtype == rows.positions.dtype == np.int32
    assert rows.source.dtype == np.int16
    assert rows.ids.shape == rows.document.shape == rows.positions.shape == (6, CONTEXT + 1)


def test_one_epoch_predicts_every_token_once(sources: list[PackedSource]):
    for source in sources:
        rows = loader([source]).next_rows(source.pack.rows)
        here, following = rows.document[:, :-1], rows.document[:, 1:]
        predicted = rows.ids[:, 1:][(here == following) & (following >= 0)]
        expected = np.concatenate(
            [source.tokens.document(n)[1:] for n in range(len(source.tokens.lengths))]
        )
        assert np.array_equal(np.sort(predicted), np.sort(expected))


def test_each_epoch_gives_each_row_once_in_another_order(sources: list[PackedSource]):
    source = sources[0]
    stream = loader([source])
    epochs = [stream.next_rows(source.pack.rows).ids for _ in range(3)]
    expected = np.unique(epochs[0], axis=0)
    for ids in epochs:
        assert np.array_equal(np.unique(ids, axis=0), expected)
    assert not np.array_equal(epochs[0], epochs[1])
    assert stream.epochs == {source.name: 3.0}


@given(
    batches=st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=6), seed=st.integers(0, 3)
)
@settings(max_examples=15)
def test_stream_is_the_same_for_any_world_size(sources, batches, seed):
    alone = loader(sources, seed)
    worlds = {w: [loader(sources, seed) for _ in range(w)] for w in (1, 2, 4)}
    for batch in batches:
        expected = alone.next_rows(batch)
        for world, ranks in worlds.items():
            parts = [rank.next_rows(batch, r, world) for r, rank in enumerate(ranks)]
            assert_same(joined(parts), expected)


@given(
    before=st.lists(st.integers(0, 30), max_size=5),
    after=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
@settings(max_examples=25)
def test_resumed_stream_goes_on_where_it_stopped(sources, before, after):
    weights = {
        "web": (WeightPoint(weight=3), WeightPoint(from_tokens=20 * CONTEXT, weight=1)),
        "code": (WeightPoint(weight=1), WeightPoint(from_tokens=40 * CONTEXT, weight=5)),
        "maths": (WeightPoint(weight=0.5),),
    }
    stream = loader(sources, weights=weights)
    for count in before:
        stream.next_rows(count)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = loader(sources, weights=weights)
    resumed.load_state_dict(state)
    assert resumed.consumed_rows == sum(before)
    for count in after:
        assert_same(resumed.next_rows(count), stream.next_rows(count))
    assert resumed.state_dict() == stream.state_dict()


def test_stream_does_not_depend_on_the_batch_size(sources: list[PackedSource]):
    whole = loader(sources).next_rows(60)
    stream = loader(sources)
    assert_same(joined([stream.next_rows(n) for n in (1, 2, 3, 24, 30)]), whole)


def test_seeds_give_other_streams(sources: list[PackedSource]):
    first, second = (loader(sources, seed).next_rows(20).ids for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_order_of_the_sources_given_does_not_matter(sources: list[PackedSource]):
    expected = loader(sources).next_rows(30)
    for order in itertools.permutations(sources):
        assert_same(loader(list(order)).next_rows(30), expected)


def test_state_of_other_data_is_refused(sources: list[PackedSource], tmp_path: Path):
    state = loader(sources).state_dict()
    with pytest.raises(MismatchError, match="seed"):
        loader(sources, seed=8).load_state_dict(state)
    with pytest.raises(MismatchError, match="tokens"):
        loader(sources[:2]).load_state_dict(state)
    changed = [make_source(tmp_path, "web", [20, 30], CONTEXT), *sources[1:]]
    with pytest.raises(MismatchError, match="tokens"):
        loader(changed).load_state_dict(state)
    packed_otherwise = replace(
        sources[0], pack=pack_documents(sources[0].tokens.lengths, CONTEXT, "concat")
    )
    with pytest.raises(MismatchError, match="tokens"):
        loader([packed_otherwise, *sources[1:]]).load_state_dict(state)
    with pytest.raises(MismatchError, match="tokenizer"):
        loader(sources).load_state_dict({**state, "tokenizer": "other"})
    with pytest.raises(MismatchError, match="mixture"):
        loader(sources, max_epochs=4).load_state_dict(state)


def test_refused_state_leaves_the_stream_where_it_was(sources: list[PackedSource]):
    stream, untouched = loader(sources), loader(sources)
    state = stream.state_dict()
    del state["rows_given"]
    with pytest.raises(CorruptFileError, match="rows_given"):
        stream.load_state_dict(state)
    assert_same(stream.next_rows(9), untouched.next_rows(9))


def test_epoch_caps_give_way_and_end_with_an_error(sources: list[PackedSource]):
    stream = loader(sources, max_epochs=2, epoch_caps={"maths": 1})
    rows = {source.name: source.pack.rows for source in sources}
    whole = 2 * rows["web"] + 2 * rows["code"] + rows["maths"]
    assert len(stream.next_rows(whole).ids) == whole
    assert stream.epochs == {"code": 2, "maths": 1, "web": 2}
    given = {one.name: one for one in stream.account}
    assert given["web"].rows == 2 * rows["web"]
    assert given["web"].tokens == 2 * sources[0].pack_tokens
    with pytest.raises(ConfigError, match="caps"):
        stream.next_rows(1)


def test_epochs_of_curation_weigh_where_no_weights_are_given(sources: list[PackedSource]):
    plain = loader(sources).next_rows(200)
    raised = [replace(sources[0], epochs=3.0), replace(sources[1], epochs=0.0), sources[2]]
    stream = loader(raised)
    counts = np.bincount(stream.next_rows(200).source, minlength=3)
    tokens = np.array([0, sources[2].tokens.manifest.tokens, 3 * sources[0].tokens.manifest.tokens])
    assert np.abs(counts - 200 * tokens / tokens.sum()).max() <= 1
    with pytest.raises(MismatchError, match="natural_tokens"):
        stream.load_state_dict(loader(sources).state_dict())
    assert len(plain.ids) == 200


def test_batch_that_does_not_divide_is_an_error(sources: list[PackedSource]):
    with pytest.raises(ConfigError, match="3 ranks"):
        loader(sources).next_rows(4, 0, 3)


def test_mixed_contexts_and_empty_lists_are_errors(sources: list[PackedSource], tmp_path: Path):
    with pytest.raises(MismatchError, match="context"):
        loader([sources[0], make_source(tmp_path, "long", [40], 32)])
    with pytest.raises(ConfigError, match="none"):
        loader([])
