import json
from pathlib import Path

import numpy as np
import pytest
from data_builder import silent_track

from fivefold.data.config import (
    MixtureConfig,
    PlantedConfig,
    TokenizerTrainingConfig,
    TokensConfig,
)
from fivefold.data.corpus_config import CurateStageConfig
from fivefold.data.corpus_stage import CurateStage
from fivefold.data.curate.config import CurateConfig, LanguageConfig
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.loader import open_loader, read_heldout_rows
from fivefold.data.packed_source import PackedSource, open_derived, open_sources
from fivefold.data.planted_tokens import locate_answers, read_planted_rows
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.data.tokenise import tokenise_corpus
from fivefold.errors import ConfigError, CorruptFileError, MismatchError, MissingFileError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.stage import Selection, StageContext, run_stages
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer, load_tokenizer

PAGES = CurateConfig(language=LanguageConfig(keep=()), tasks=1)
CONTEXTS = (256, 512)
CONFIG = TokensConfig(
    contexts=CONTEXTS,
    long_contexts=CONTEXTS,
    long_share=0.75,
    planted=PlantedConfig(contexts=CONTEXTS, tokens_per_context=10_000, heldout_documents=8),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    tokenizer = TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=1024))
    corpus = {"corpus": "corpus"}
    run_stages(
        [
            CurateStage("corpus", CurateStageConfig(profile="fixture", dclm_baseline=PAGES)),
            TokenizerStage("tokenizer", tokenizer, corpus),
            TokensStage("tokens", CONFIG, {**corpus, "tokenizer": "tokenizer"}),
            TokensStage(
                "plain", TokensConfig(contexts=CONTEXTS), {**corpus, "tokenizer": "tokenizer"}
            ),
        ],
        folder,
        Selection(),
        lambda stage: StageContext(
            0, "cpu", 1, StageMetrics(folder / "metrics.jsonl", stage.name), silent_track
        ),
    )
    return folder


def same_rows(first, second) -> bool:
    names = ("ids", "document", "positions", "source")
    return all(np.array_equal(getattr(first, n), getattr(second, n)) for n in names)


@pytest.mark.parametrize("context", CONTEXTS)
def test_answer_tokens_decode_to_the_answers(run: Path, context: int):
    tokenizer = load_tokenizer(run / "tokenizer")
    (source,) = open_derived(run / "tokens", context, "planted", "heldout", verify=True)
    answers = json.loads((run / "tokens" / "heldout" / "planted.answers.json").read_text())
    checked = 0
    for number, document in enumerate(answers["documents"]):
        ids = source.tokens.document(number).tolist()
        assert len(ids) == document["tokens"]
        for fact in document["facts"]:
            at, count, planted = fact["answer_token"], fact["answer_tokens"], fact["planted_token"]
            assert tokenizer.decode(ids[at : at + count]).strip() == fact["answer"]
            assert tokenizer.decode(ids[:at]).rstrip(" ").endswith(fact["question"])
            assert tokenizer.decode(ids[planted : planted + count]).strip() == fact["answer"]
            assert tokenizer.decode([ids[at]]).strip()
            assert tokenizer.decode([ids[planted]]).strip()
            assert fact["distance_tokens"] == at - planted > 0
            checked += document["context_tokens"] == context
    assert checked >= 8


@pytest.mark.parametrize("context", CONTEXTS)
def test_mask_marks_the_answers_and_nothing_else(run: Path, context: int):
    tokenizer = load_tokenizer(run / "tokenizer")
    rows, mask = read_planted_rows(run / "tokens", context, tokenizer.pad_id)
    assert mask.shape == rows.ids.shape == (8, context + 1)
    assert mask.dtype == np.bool_
    answers = json.loads((run / "tokens" / "heldout" / "planted.answers.json").read_text())
    expected = sorted(
        sorted(fact["answer"] for fact in document["facts"])
        for document in answers["documents"]
        if document["context_tokens"] == context
    )
    found = []
    for ids, marks, pieces in zip(rows.ids, mask, rows.document, strict=True):
        starts = np.flatnonzero(np.diff(marks.astype(int)) == 1) + 1
        ends = np.flatnonzero(np.diff(marks.astype(int)) == -1) + 1
        runs = [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, ends, strict=True)]
        found.append(sorted(runs))
        assert set(pieces[marks]) == {0}
    assert sorted(found) == expected


def test_each_planted_row_is_one_whole_document_of_its_context(run: Path):
    answers = json.loads((run / "tokens" / "train" / "planted.answers.json").read_text())
    for context in CONTEXTS:
        (source,) = open_derived(run / "tokens", context, "planted")
        own = [n for n, d in enumerate(answers["documents"]) if d["context_tokens"] == context]
        assert sorted(source.pack.document) == own
        assert source.pack.rows == len(own) == -(-10_000 // context)
        assert (source.pack.length == source.tokens.lengths[source.pack.document]).all()
        assert (source.pack.start == 0).all()


def test_without_a_share_training_and_validation_are_what_they_were(run: Path):
    pad_id = load_tokenizer(run / "tokenizer").pad_id
    for context in CONTEXTS:
        planted, plain = run / "tokens", run / "plain"
        loaders = [open_loader(folder, context, seed=5) for folder in (planted, plain)]
        assert same_rows(*(loader.next_rows(60) for loader in loaders))
        assert loaders[0].state_dict() == loaders[1].state_dict()
        assert same_rows(*(read_heldout_rows(f, context, pad_id) for f in (planted, plain)))
        names = [[s.name for s in open_sources(f, context)] for f in (planted, plain)]
        assert names[0] == names[1]


def test_shares_give_their_part_of_the_rows(run: Path):
    mixture = MixtureConfig(shares={"planted": 0.2, "long": 0.5})
    loader = open_loader(run / "tokens", 256, seed=5, mixture=mixture)
    rows = loader.next_rows(400)
    names = np.array(loader.sources)[rows.source]
    assert abs((names == "planted").sum() - 80) <= 3
    is_long = np.char.endswith(names, ".long")
    assert abs(is_long.sum() - 200) <= 5
    assert (rows.document[is_long] <= 0).all()
    assert ((rows.document[is_long] == 0).sum(axis=1) >= 0.75 * 256).all()


def test_resumed_mixture_of_shares_goes_on(run: Path):
    mixture = MixtureConfig(shares={"planted": 0.2, "long": 0.5})
    first, second = (open_loader(run / "tokens", 512, seed=5, mixture=mixture) for _ in range(2))
    first.next_rows(33)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert same_rows(first.next_rows(20), second.next_rows(20))
    with pytest.raises(MismatchError):
        open_loader(run / "tokens", 512, seed=5).load_state_dict(first.state_dict())


def test_share_without_rows_is_an_error_that_names_the_key(run: Path):
    for share, key in (("planted", r"planted\.contexts"), ("long", "long_contexts")):
        with pytest.raises(ConfigError, match=key):
            open_loader(run / "plain", 256, seed=0, mixture=MixtureConfig(shares={share: 0.1}))
    with pytest.raises(ConfigError, match=r"planted\.contexts"):
        read_planted_rows(run / "plain", 256, 0)


def test_training_and_heldout_text_differ(run: Path):
    def text(split: str) -> str:
        documents = read_documents(run / "corpus" / f"{split}.jsonl.zst")
        return " ".join(" ".join(document.text.split()) for document in documents)

    tokenizer = load_tokenizer(run / "tokenizer")
    heldout, train = text("heldout"), text("train")
    (source,) = open_derived(run / "tokens", 512, "planted", "heldout")
    for number in source.pack.document:
        words = tokenizer.decode(source.tokens.document(number), skip_special=True)
        beginning = " ".join(words.split()[:8])
        assert beginning in heldout
        assert beginning not in train


def test_metrics_and_pages_tell_of_planted_documents(run: Path):
    records = [r for r in read_metrics(run / "metrics.jsonl") if r["stage"] == "tokens"]
    numbers = {key: value for record in records for key, value in record.items()}
    for split in ("train", "heldout"):
        (source,) = open_derived(run / "tokens", 512, "planted", split)
        assert numbers[f"data/planted_{split}_tokens"] == source.tokens.manifest.tokens
    (curves, table, example) = (
        json.loads((run / "tokens" / "page" / f"{name}.json").read_text())
        for name in ("30_planted_distances", "31_planted_documents", "32_planted_example")
    )
    assert [series["name"] for series in curves["series"]] == ["context 256", "context 512"]
    assert all(sum(series["y"]) == pytest.approx(1, abs=1e-3) for series in curves["series"])
    assert len(table["rows"]) == 4
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert "⟪" in example["text"]
    assert not list((run / "plain" / "page").glob("3*"))


def write_corpus(folder: Path, texts: list[str], source: str = "s") -> Path:
    for split in ("train", "heldout"):
        with document_writer(folder / f"{split}.jsonl.zst") as add:
            for number, text in enumerate(texts):
                add(Document(str(number), text, source))
    return folder


def test_corpus_of_short_documents_has_no_long_ones(tmp_path: Path, tokenizer: Tokenizer):
    corpus = write_corpus(tmp_path, ["word " * 40, "word " * 20])
    longest = len(tokenizer.encode("word " * 40)) + 3
    config = TokensConfig(contexts=(64, 1024), long_contexts=(64, 1024))
    with pytest.raises(ConfigError, match=rf"1,024.*the longest has {longest} tokens.*long_share"):
        tokenise_corpus(corpus, tmp_path / "tokens", tokenizer, config, silent_track)
    assert not (tmp_path / "tokens" / "tokens.json").exists()


def test_source_with_the_name_of_a_derived_one_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    corpus = write_corpus(tmp_path, ["word " * 40], "planted")
    with pytest.raises(ConfigError, match="Rename"):
        tokenise_corpus(corpus, tmp_path / "tokens", tokenizer, TokensConfig(), silent_track)


def test_damaged_answers_are_reported(run: Path, tmp_path: Path):
    copy = tmp_path / "tokens"
    (copy / "heldout").mkdir(parents=True)
    (copy / "tokens.json").write_bytes((run / "tokens" / "tokens.json").read_bytes())
    for path in (run / "tokens" / "heldout").iterdir():
        (copy / "heldout" / path.name).write_bytes(path.read_bytes())
    answers = copy / "heldout" / "planted.answers.json"
    whole = answers.read_text()
    for kept in (0, 30, len(whole) // 2):
        answers.write_text(whole[:kept])
        with pytest.raises(CorruptFileError, match="planted"):
            read_planted_rows(copy, 256, 0)
    answers.write_text(json.dumps({**json.loads(whole), "tokens_sha256": "other"}))
    with pytest.raises(MismatchError, match="other"):
        read_planted_rows(copy, 256, 0)
    answers.unlink()
    with pytest.raises(MissingFileError, match="answers"):
        read_planted_rows(copy, 256, 0)


def test_places_are_counted_in_tokens_where_characters_have_several_bytes(tokenizer: Tokenizer):
    statement = "The password of Marta Vane is amber falcon."
    text = f"Überall, ¿dónde? {statement} “Ça va.”\n\n{statement}"
    asked = text.rindex(statement)
    fact = {
        "question_start_character": asked,
        "answer_start_character": asked + len("The password of Marta Vane is "),
        "answer": "amber falcon",
        "planted_character": text.index(statement),
        "depth": 0.5,
    }
    document = Document("x", text, "planted", meta={"context_tokens": 64, "facts": [fact]})
    ids = tokenizer.frame_document(tokenizer.encode(text))
    (found,) = locate_answers(document, ids, tokenizer.token_bytes())["facts"]
    for first in (found["answer_token"], found["planted_token"]):
        assert tokenizer.decode(ids[first : first + found["answer_tokens"]]) == " amber falcon"


def test_long_pieces_come_from_long_documents_only(run: Path):
    for context in CONTEXTS:
        sources: list[PackedSource] = open_derived(run / "tokens", context, "long")
        assert sources
        for source in sources:
            assert source.pack.length.min() >= 0.75 * context
            assert source.pack_tokens == source.pack.length.sum()
