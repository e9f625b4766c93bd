import json
from collections.abc import Callable
from pathlib import Path

import pytest
from data_builder import silent_track

from fivefold.data.config import TokenizerTrainingConfig, TokensConfig
from fivefold.data.curate.config import CurateConfig, CurateStageConfig
from fivefold.data.curate.stage import CurateStage
from fivefold.data.document import read_documents
from fivefold.data.packed_source import open_sources
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.errors import ConfigError
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.stage import Selection, Stage, StageContext, run_stages
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import load_tokenizer


def run(folder: Path, config: CurateStageConfig) -> Path:
    folder.mkdir()
    tokenizer = TokenizerTrainingConfig(tokenizer=TokenizerConfig(vocab_size=600))
    stages: list[Stage] = [
        CurateStage("corpus", config),
        TokenizerStage("tokenizer", tokenizer, {"corpus": "corpus"}),
        TokensStage(
            "tokens", TokensConfig(contexts=(64,)), {"corpus": "corpus", "tokenizer": "tokenizer"}
        ),
    ]
    metrics = folder / "metrics.jsonl"
    run_stages(
        stages,
        folder,
        Selection(),
        lambda stage: StageContext(0, "cpu", 1, StageMetrics(metrics, stage.name), silent_track),
    )
    return folder


@pytest.fixture
def sources(tmp_path: Path, english: Callable[[int], str]) -> tuple[str, ...]:
    """Two sites whose pages' hashes interleave; one page of the second is a copy."""
    for site, numbers in (("one", range(12)), ("two", range(11, 22))):
        (tmp_path / site).mkdir()
        for number in numbers:
            body = "".join(f"<p>{line}</p>" for line in english(number).split("\n"))
            page = f"<html><body>{body}</body></html>"
            (tmp_path / site / f"{number}.html").write_text(page)
    return str(tmp_path / "one"), str(tmp_path / "two")


def test_curated_pages_go_on_to_tokens_unchanged(tmp_path: Path, sources: tuple[str, ...]):
    config = CurateStageConfig(sources=sources, curate=CurateConfig(tasks=2), heldout_bytes=2000)
    finished = run(tmp_path / "run", config)
    tokenizer = load_tokenizer(finished / "tokenizer")
    texts: dict[str, dict[str, list[str]]] = {}
    for split in ("train", "heldout"):
        texts[split] = {}
        for document in read_documents(finished / "corpus" / f"{split}.jsonl.zst"):
            texts[split].setdefault(document.source, []).append(document.text)
        for source in open_sources(finished / "tokens", 64, split, verify=True):
            ids = [
                source.tokens.document(n).tolist() for n in range(source.tokens.manifest.documents)
            ]
            assert [tokenizer.decode(one[2:-1]) for one in ids] == texts[split][source.name]
    assert sum(len(some) for split in texts.values() for some in split.values()) == 22
    assert set(texts["train"]) == {"one", "two"}
    assert texts["heldout"]
    corpus = finished / "corpus"
    facts = json.loads((corpus / "sources.json").read_text())
    assert sum(source["documents"] for source in facts["sources"]) == 22
    accounts = json.loads((corpus / "accounts.json").read_text())
    assert accounts["duplicates"]["drops"] == {"duplicate.exact": 1}
    assert (corpus / "page" / "01_funnel.json").is_file()
    assert not (corpus / "state").exists()
    written = [row for row in read_metrics(finished / "metrics.jsonl") if row["stage"] == "corpus"]
    assert written[-1]["data/raw_pages"] == 23


def test_the_place_of_the_work_does_not_change_the_result(tmp_path: Path, sources: tuple[str, ...]):
    digests = []
    for name, work in (("a", ""), ("b", str(tmp_path / "work")), ("c", str(tmp_path / "work"))):
        curate = CurateConfig(tasks=2)
        config = CurateStageConfig(sources=sources, curate=curate, work_dir=work)
        marker = run(tmp_path / name, config) / "corpus" / "finished.json"
        digests.append(json.loads(marker.read_text())["output_digest"])
    assert len(set(digests)) == 1
    assert len(list((tmp_path / "work").glob("extract-*"))) == 1


def test_nothing_left_is_said_with_the_way_to_look(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.html").write_text("<p>Too short.</p>")
    config = CurateStageConfig(sources=(str(tmp_path / "in"),))
    with pytest.raises(ConfigError, match="1 pages read, all dropped"):
        run(tmp_path / "run", config)
