import json
from pathlib import Path

import numpy as np
import pytest
from data_builder import silent_track

from fivefold.data.config import TokenizerTrainingConfig, TokensConfig
from fivefold.data.corpus_config import CurateStageConfig
from fivefold.data.corpus_page import mixture_page
from fivefold.data.corpus_stage import CurateStage
from fivefold.data.curate.config import CurateConfig, LanguageConfig
from fivefold.data.document import read_documents
from fivefold.data.loader import open_loader, read_heldout_rows
from fivefold.data.packed_source import open_sources
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.data.tokenise import gzip_bits_per_byte
from fivefold.errors import MissingFileError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.stage import Selection, Stage, StageContext, run_stages
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import load_tokenizer

CONTEXTS = (64, 256)


def fixture_corpus() -> CurateStageConfig:
    pages = CurateConfig(language=LanguageConfig(keep=()), tasks=1)
    return CurateStageConfig(profile="fixture", dclm_baseline=pages)


def run(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    tokenizer = TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=1024))
    stages: list[Stage] = [
        CurateStage("corpus", fixture_corpus()),
        TokenizerStage("tokenizer", tokenizer, {"corpus": "corpus"}),
        TokensStage(
            "tokens",
            TokensConfig(contexts=CONTEXTS),
            {"corpus": "corpus", "tokenizer": "tokenizer"},
        ),
    ]
    metrics = folder / "metrics.jsonl"
    run_stages(
        stages,
        folder,
        Selection(),
        lambda stage: StageContext(seed, "cpu", 1, StageMetrics(metrics, stage.name), silent_track),
    )
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("run") / "first")


def test_stages_make_the_same_files_twice(finished: Path, tmp_path: Path):
    again = run(tmp_path / "again", seed=1)
    for name in ("corpus", "tokenizer", "tokens"):
        first, second = (
            json.loads((folder / name / "finished.json").read_text())
            for folder in (finished, again)
        )
        assert first["output_digest"] == second["output_digest"], name


def test_token_files_hold_the_framed_documents(finished: Path):
    tokenizer = load_tokenizer(finished / "tokenizer")
    for split in ("train", "heldout"):
        texts: dict[str, list[str]] = {}
        for document in read_documents(finished / "corpus" / f"{split}.jsonl.zst"):
            texts.setdefault(document.source, []).append(document.text)
        sources = open_sources(finished / "tokens", 256, split, verify=True)
        assert [source.name for source in sources] == sorted(texts)
        for source in sources:
            assert source.tokens.manifest.tokenizer_hash == tokenizer.content_hash
            for number, text in enumerate(texts[source.name]):
                ids = source.tokens.document(number).tolist()
                assert ids[:2] == tokenizer.prefix_ids
                assert ids[-1] == tokenizer.pad_id
                assert tokenizer.decode(ids[2:-1]) == text


@pytest.mark.parametrize("context", CONTEXTS)
def test_heldout_labels_are_exactly_the_heldout_bytes(finished: Path, context: int):
    tokenizer = load_tokenizer(finished / "tokenizer")
    rows = read_heldout_rows(finished / "tokens", context, tokenizer.pad_id)
    here, following = rows.document[:, :-1], rows.document[:, 1:]
    labels = rows.ids[:, 1:][(here == following) & (following >= 0)]
    _, heldout_bytes = gzip_bits_per_byte(finished / "corpus" / "heldout.jsonl.zst")
    assert tokenizer.token_bytes()[labels].sum() == heldout_bytes


def test_loader_opens_what_the_stage_wrote(finished: Path):
    stream = open_loader(finished / "tokens", 64, seed=3)
    rows = stream.next_rows(50)
    assert rows.ids.shape == (50, 65)
    assert stream.context_tokens == 64
    assert set(np.unique(rows.source)) <= set(range(len(stream.sources)))
    padding = rows.document == -1
    assert (rows.ids[padding] == load_tokenizer(finished / "tokenizer").pad_id).all()


def test_metrics_agree_with_the_files(finished: Path):
    numbers: dict[str, float] = {}
    for record in read_metrics(finished / "metrics.jsonl"):
        numbers.update({k: v for k, v in record.items() if k.startswith("data/")})
    summary = json.loads((finished / "tokens" / "tokens.json").read_text())
    assert numbers["data/train_tokens"] == summary["tokens"]["train"]
    assert numbers["data/heldout_tokens"] == summary["tokens"]["heldout"]
    documents = {
        split: sum(1 for _ in read_documents(finished / "corpus" / f"{split}.jsonl.zst"))
        for split in ("train", "heldout")
    }
    assert numbers["data/train_documents"] == documents["train"]
    assert numbers["data/documents"] == sum(documents.values())
    assert 1 < numbers["data/heldout_gzip_bits_per_byte"] < 8


def test_pages_and_accounts_are_written(finished: Path):
    blocks = {
        path.relative_to(finished).as_posix(): json.loads(path.read_text())
        for path in finished.glob("*/page/*.json")
    }
    names = {path.split("/")[-1].removesuffix(".json") for path in blocks if "corpus" in path}
    assert names == {
        "001_funnel_dclm_baseline",
        "002_reasons_dclm_baseline",
        "10_sources",
        "12_languages",
        "16_benchmarks",
        "20_drops",
        "30_lengths",
        "40_samples",
        "50_dropped_dclm_baseline",
    }
    for block in blocks.values():
        assert block["kind"] in ("table", "bars", "samples")
        assert block["title"]
        if block["kind"] == "table":
            assert {len(row) for row in block["rows"]} == {len(block["columns"])}
    accounts = json.loads((finished / "corpus" / "accounts.json").read_text())["dclm_baseline"]
    assert accounts["duplicates"]["drops"] == {"duplicate.exact": 1}
    dropped = sum(sum(one["drops"].values()) for one in accounts.values())
    drops = json.loads((finished / "corpus" / "drops.json").read_text())
    assert accounts["url"]["documents_in"] - dropped == drops["documents_kept"]
    sources = json.loads((finished / "corpus" / "sources.json").read_text())
    assert sources["profile"] == "fixture"
    assert sum(source["documents"] for source in sources["sources"]) == drops["documents_kept"]
    assert json.loads((finished / "corpus" / "tiers.json").read_text()) == {}


def test_mixture_page_is_the_account_of_what_was_given(finished: Path, tmp_path: Path):
    loader = open_loader(finished / "tokens", 64, seed=3)
    sources = np.bincount(loader.next_rows(70).source, minlength=len(loader.sources))
    metrics = mixture_page(tmp_path, "0", loader)
    block = json.loads((tmp_path / "06_mixture_0.json").read_text())
    assert [row[0] for row in block["rows"]] == list(loader.sources)
    assert [row[1] for row in block["rows"]] == sources.tolist()
    packed = {source.name: source for source in open_sources(finished / "tokens", 64)}
    for name, rows, _, tokens, epochs in block["rows"]:
        assert epochs == pytest.approx(rows / packed[name].pack.rows, abs=1e-4)
        assert tokens == round(rows / packed[name].pack.rows * packed[name].pack_tokens)
        assert metrics[f"mixture/epochs_{name}"] == pytest.approx(epochs, abs=1e-4)


def test_directory_without_tokens_is_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"tokens\.json"):
        open_loader(tmp_path, 64, seed=0)


def test_context_without_a_pack_is_named(finished: Path):
    with pytest.raises(MissingFileError, match=r"tokens\.contexts"):
        open_loader(finished / "tokens", 128, seed=0)
