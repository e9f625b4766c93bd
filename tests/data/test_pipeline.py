import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.data.code.concatenate import PackedFile, pack_repository, unpack
from fivefold.data.code.config import FimConfig, PackConfig
from fivefold.data.config import CorpusConfig
from fivefold.data.document import Document, document_id, document_writer, read_documents
from fivefold.data.pipeline import build_corpus
from fivefold.errors import ConfigError, CorruptFileError

SENTENCE = "The sea rises twice a day, and the moon is the reason, says page {}. "


def document(source: str, number: int, text: str, **meta: object) -> Document:
    return Document(document_id(source, str(number)), text, source, str(number), "en", meta)


def write(path: Path, documents: list[Document]) -> Path:
    with document_writer(path) as append:
        for one in documents:
            append(one)
    return path


def corpus_files(folder: Path) -> list[Path]:
    files = []
    for name in ("first", "second"):
        texts = [SENTENCE.format(f"{name} {n}") * (3 + n % 5) for n in range(30)]
        if name == "second":
            texts.append(SENTENCE.format("first 7") * 5 + " \n")
        documents = [document(name, number, text) for number, text in enumerate(texts)]
        files.append(write(folder / f"{name}.jsonl.zst", documents))
    return files


def config(**fields) -> CorpusConfig:
    return CorpusConfig(heldout_bytes=4000, **fields)


def test_every_document_is_kept_or_dropped_for_a_reason(tmp_path: Path):
    corpus = build_corpus(corpus_files(tmp_path), config(), tmp_path / "out")
    ledger = corpus.ledger
    assert sum(ledger.read.values()) == 61
    assert sum(ledger.kept.values()) + sum(ledger.drops.values()) == 61
    assert sum(count for (_, reason), count in ledger.drops.items() if reason == "duplicate") == 1
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


def test_documents_do_not_depend_on_the_order_of_files(tmp_path: Path):
    results = []
    for number, order in enumerate(itertools.permutations(corpus_files(tmp_path))):
        corpus = build_corpus(order, config(), tmp_path / f"out{number}")
        results.append(
            [{d.id for d in read_documents(path)} for path in (corpus.train, corpus.heldout)]
        )
    assert all(result == results[0] for result in results)
    assert results[0][1]


@settings(max_examples=10)
@given(paragraphs=st.lists(st.integers(50, 900), min_size=10, max_size=40))
def test_long_text_becomes_several_documents(paragraphs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    text = "\n\n".join(f"{n} " + "word " * (size // 5) for n, size in enumerate(paragraphs))
    file = write(folder / "book.jsonl.zst", [document("book", 0, text)])
    corpus = build_corpus([file], config(max_document_characters=1000), folder / "out")
    documents = [d for p in (corpus.train, corpus.heldout) for d in read_documents(p)]
    assert all(len(document.text) <= 1000 for document in documents)
    dropped = sum(corpus.ledger.drops.values())
    assert sum(len(d.text.split()) for d in documents) <= len(text.split())
    assert dropped or sum(len(d.text.split()) for d in documents) == len(text.split())


def test_parts_of_a_text_are_on_one_side(tmp_path: Path):
    texts = [
        "\n\n".join(SENTENCE.format(f"{number}.{k}") * 6 for k in range(5)) for number in range(12)
    ]
    file = write(tmp_path / "a.jsonl.zst", [document("a", n, t) for n, t in enumerate(texts)])
    settings = CorpusConfig(max_document_characters=1000, heldout_share=0.3)
    corpus = build_corpus([file], settings, tmp_path / "out")
    sides = [
        {document.meta["part_of"] for document in read_documents(path)}
        for path in (corpus.train, corpus.heldout)
    ]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3


def packed_repositories(count: int) -> list[Document]:
    """Repositories of several texts each, half of the files rearranged."""
    texts = []
    for number in range(count):
        files = [
            PackedFile(
                id=f"{number}.{k}",
                path=f"pkg/m{k}.py",
                language="python",
                text=f"# {number}.{k}\n" + f"def f{k}():\n    return {number}\n\n\n\n" * 20,
                copies=2,
            )
            for k in range(6)
        ]
        pack = PackConfig(max_characters=1200, fim=FimConfig(rate=0.7))
        texts += list(pack_repository(f"r{number}", files, pack))
    return texts


def test_texts_of_repositories_pass_whole_and_stay_together(tmp_path: Path):
    texts = packed_repositories(12)
    assert any(text.meta["marks"] for text in texts)
    file = write(tmp_path / "code.jsonl.zst", texts)
    settings = CorpusConfig(max_document_characters=1000, heldout_share=0.3)
    corpus = build_corpus([file], settings, tmp_path / "out")
    train, heldout = (list(read_documents(path)) for path in (corpus.train, corpus.heldout))
    before = {text.id: text for text in texts}
    assert len(train) + len(heldout) == len(texts)
    assert max(len(one.text) for one in train) > 1000
    assert all(one.text == before[one.id].text for one in train)
    assert all(one.meta["marks"] == before[one.id].meta["marks"] for one in train)
    sides = [{one.meta["repository"] for one in side} for side in (train, heldout)]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_held_out_code_has_its_middles_back(tmp_path: Path):
    texts = packed_repositories(12)
    file = write(tmp_path / "code.jsonl.zst", texts)
    corpus = build_corpus([file], CorpusConfig(heldout_share=0.5), tmp_path / "out")
    before = {text.id: text for text in texts}
    heldout = list(read_documents(corpus.heldout))
    assert any(before[one.id].meta["marks"] for one in heldout)
    for one in heldout:
        assert not one.meta["marks"]
        assert "<|code_middle|>" not in one.text
        assert unpack(one) == unpack(before[one.id])
        ends = (before[one.id].text.split("\n")[0], before[one.id].text[-1])
        assert (one.text.split("\n")[0], one.text[-1]) == ends


def test_one_repository_alone_is_never_divided(tmp_path: Path):
    file = write(tmp_path / "code.jsonl.zst", packed_repositories(1))
    corpus = build_corpus([file], CorpusConfig(heldout_share=0.5), tmp_path / "out")
    assert not list(read_documents(corpus.heldout))


def test_tiers_are_counted_with_the_epochs_that_they_are_wanted_for(tmp_path: Path):
    files = []
    for tier, epochs in (("high", 3.0), ("low", 0.5)):
        meta = {"tier": tier, "epochs": epochs}
        documents = [
            document(f"web-{tier}", n, SENTENCE.format(f"{tier} {n}") * 3, **meta) for n in range(9)
        ]
        files.append(write(tmp_path / f"{tier}.jsonl.zst", documents))
    corpus = build_corpus(files, CorpusConfig(heldout_bytes=0), tmp_path / "out")
    found = {name: tier.to_json() for name, tier in corpus.tiers.items()}
    assert found["high"]["documents"] == found["low"]["documents"] == 9
    assert (found["high"]["epochs"], found["low"]["epochs"]) == (3.0, 0.5)
    size = sum(len(one.text.encode()) for one in read_documents(files[0]))
    assert found["high"]["bytes"] == size


def test_foreign_meta_does_not_disturb_the_split(tmp_path: Path):
    row = '{"id": "%d", "text": "' + SENTENCE * 4 + '%d", "meta": {"part_of": [1], "part": "x", '
    row += '"marks": [["a", 1]], "tier": 7, "epochs": "often", "repository": 3}}\n'
    (tmp_path / "rows.jsonl").write_text("".join(row % (n, n) for n in range(30)))
    corpus = build_corpus([tmp_path / "rows.jsonl"], config(), tmp_path / "out")
    assert 0 < sum(1 for _ in read_documents(corpus.heldout)) <= 3
    assert not corpus.tiers


def test_repeated_ids_are_counted(tmp_path: Path):
    row = '{"id": "same", "text": "' + SENTENCE * 4 + '%d"}\n'
    (tmp_path / "rows.jsonl").write_text(row % 1 + row % 2)
    corpus = build_corpus([tmp_path / "rows.jsonl"], config(), tmp_path / "out")
    assert corpus.ledger.drops["rows", "repeated id"] == 1
    assert corpus.ledger.kept["rows"] == 1


def test_nothing_kept_is_an_error_that_says_how_much_was_read(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ConfigError, match="0 documents read"):
        build_corpus([tmp_path / "rows.jsonl"], config(), tmp_path / "out")


def test_damaged_rows_stop_the_corpus_and_leave_no_file(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "' + SENTENCE * 4 + '"}\n{"te')
    with pytest.raises(CorruptFileError, match="line 2"):
        build_corpus([tmp_path / "rows.jsonl"], config(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
