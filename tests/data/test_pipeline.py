import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.config import CorpusConfig
from fivefold.data.document import read_documents
from fivefold.data.pipeline import build_corpus
from fivefold.data.reader import user_inputs
from fivefold.errors import ConfigError, CorruptFileError

SENTENCE = "The sea rises twice a day, and the moon is the reason, says page {}. "


def corpus_files(folder: Path) -> list[str]:
    for name in ("first", "second"):
        (folder / name).mkdir()
        for number in range(30):
            text = SENTENCE.format(f"{name} {number}") * (3 + number % 5)
            (folder / name / f"{number}.txt").write_text(text)
    (folder / "second" / "copy.txt").write_text(SENTENCE.format("first 7") * 5 + " \n")
    (folder / "second" / "short.txt").write_text("Too short.")
    (folder / "second" / "binary.txt").write_bytes(b"word \xff\xfe\x9c" * 100 + bytes(range(256)))
    return [str(folder / "first"), str(folder / "second")]


def config(**fields) -> CorpusConfig:
    return CorpusConfig(profile="files", files=("x",), heldout_bytes=4000, **fields)


def test_every_document_is_kept_or_dropped_for_a_reason(tmp_path: Path):
    corpus = build_corpus(user_inputs(tuple(corpus_files(tmp_path))), config(), tmp_path / "out")
    ledger = corpus.ledger
    assert sum(ledger.read.values()) == 63
    assert sum(ledger.kept.values()) + sum(ledger.drops.values()) == 63
    assert ledger.drops["second", "too short"] == 1
    assert sum(count for (_, reason), count in ledger.drops.items() if reason == "duplicate") == 1
    assert ledger.samples["too short"][0]["text"] == "Too short."
    train, heldout = (list(read_documents(path)) for path in (corpus.train, corpus.heldout))
    assert len(train) + len(heldout) == sum(ledger.kept.values())
    assert not {d.id for d in train} & {d.id for d in heldout}
    assert not {d.text for d in train} & {d.text for d in heldout}
    size = sum(len(document.text.encode()) for document in heldout)
    assert 0 < size == sum(corpus.heldout_bytes.values()) <= 4000
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "train.jsonl.zst",
        "heldout.jsonl.zst",
    }


def test_documents_do_not_depend_on_the_order_of_sources(tmp_path: Path):
    inputs = user_inputs(tuple(corpus_files(tmp_path)))
    results = []
    for number, order in enumerate(itertools.permutations(inputs)):
        corpus = build_corpus(order, config(), tmp_path / f"out{number}")
        results.append(
            [{d.id for d in read_documents(path)} for path in (corpus.train, corpus.heldout)]
        )
    assert all(result == results[0] for result in results)
    assert results[0][1]


def test_full_source_is_a_sample_and_not_a_prefix(tmp_path: Path):
    inputs = user_inputs(tuple(corpus_files(tmp_path)[:1]))
    corpus = build_corpus(inputs, config(max_bytes_per_source=3000), tmp_path / "out")
    assert 3000 <= corpus.ledger.kept_bytes["first"] < 3500
    assert corpus.ledger.full == {"first"}
    numbers = [
        int(document.url.removesuffix(".txt"))
        for path in (corpus.train, corpus.heldout)
        for document in read_documents(path)
    ]
    assert len(numbers) < 15
    assert max(numbers) > 20


@settings(max_examples=10)
@given(paragraphs=st.lists(st.integers(50, 900), min_size=10, max_size=40))
def test_long_text_becomes_several_documents(paragraphs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    text = "\n\n".join(f"{n} " + "word " * (size // 5) for n, size in enumerate(paragraphs))
    (folder / "book.txt").write_text(text)
    inputs = user_inputs((str(folder / "book.txt"),))
    corpus = build_corpus(inputs, config(max_document_characters=1000), folder / "out")
    documents = [d for p in (corpus.train, corpus.heldout) for d in read_documents(p)]
    assert all(len(document.text) <= 1000 for document in documents)
    dropped = sum(corpus.ledger.drops.values())
    assert sum(len(d.text.split()) for d in documents) <= len(text.split())
    assert dropped or sum(len(d.text.split()) for d in documents) == len(text.split())


def test_parts_of_a_text_are_on_one_side(tmp_path: Path):
    for number in range(12):
        paragraphs = [SENTENCE.format(f"{number}.{k}") * 6 for k in range(5)]
        (tmp_path / f"{number}.txt").write_text("\n\n".join(paragraphs))
    inputs = user_inputs((str(tmp_path),))
    settings = CorpusConfig(
        profile="files", files=("x",), max_document_characters=1000, heldout_share=0.3
    )
    corpus = build_corpus(inputs, settings, tmp_path / "out")
    sides = [
        {document.meta["part_of"] for document in read_documents(path)}
        for path in (corpus.train, corpus.heldout)
    ]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3


def test_foreign_meta_does_not_disturb_the_split(tmp_path: Path):
    row = '{"id": "%d", "text": "' + SENTENCE * 4 + '%d", "meta": {"part_of": [1], "part": "x"}}\n'
    (tmp_path / "rows.jsonl").write_text("".join(row % (n, n) for n in range(30)))
    inputs = user_inputs((str(tmp_path / "rows.jsonl"),))
    corpus = build_corpus(inputs, config(), tmp_path / "out")
    assert 0 < sum(1 for _ in read_documents(corpus.heldout)) <= 3


def test_repeated_ids_are_counted(tmp_path: Path):
    row = '{"id": "same", "text": "' + SENTENCE * 4 + '%d"}\n'
    (tmp_path / "rows.jsonl").write_text(row % 1 + row % 2)
    inputs = user_inputs((str(tmp_path / "rows.jsonl"),))
    corpus = build_corpus(inputs, config(), tmp_path / "out")
    assert corpus.ledger.drops["rows", "repeated id"] == 1
    assert corpus.ledger.kept["rows"] == 1


def test_nothing_kept_is_an_error_that_says_how_much_was_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ConfigError, match="1 documents read"):
        build_corpus(user_inputs((str(tmp_path / "a.txt"),)), config(), tmp_path / "out")


def test_damaged_rows_stop_the_corpus_and_leave_no_file(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "' + SENTENCE * 4 + '"}\n{"te')
    inputs = user_inputs((str(tmp_path / "rows.jsonl"),))
    with pytest.raises(CorruptFileError, match="line 2"):
        build_corpus(inputs, config(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
