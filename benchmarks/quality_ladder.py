"""Does curation make a better model? The same nano, on as many tokens of four grades of one corpus.

Usage: `python benchmarks/quality_ladder.py RUN_DIR [--tokens 1600000] [--seeds 0 1 2]`, or with
`--smoke` for a minute. Each rung has what the one before it has, and one thing more:

    raw           pages as extraction gives them, exact copies gone
    heuristics    DCLM's rules drop and edit
    deduplicated  MinHash and Bloom
    classified    the best share by a fastText classifier trained on two good sources

One tokenizer, learned from the raw rung. One held-out set: pages of the deduplicated rung chosen by
the hash of their ids, as they read there; no rung trains on them, nor on a page that shares a tenth
of its 13-word sequences with them. What stands for clean text is therefore what the rules leave,
and the classifier is not its judge. A rung smaller than the tokens is repeated; the table says how
often.

Stages in RUN_DIR: the same command goes on after a kill, and more seeds reuse what is there. Writes
RUN_DIR/quality_ladder.json, prints a table and, as the last line, the summary as JSON. A seed of
400,000 tokens takes about 14 CPU minutes, one of 1,600,000 about an hour.
"""

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pydantic
import xxhash
from harness import RESULTS

from fivefold.artifact import write_json
from fivefold.config import Config, Runtime
from fivefold.data.config import TokenizerTrainingConfig, TokensConfig
from fivefold.data.curate.classifier import train_classifier
from fivefold.data.curate.config import (
    ClassifierTrainingConfig,
    CurateConfig,
    LanguageConfig,
    QualityClassifierConfig,
)
from fivefold.data.curate.dclm_baseline import run_dclm_baseline
from fivefold.data.curate.grams import Grams
from fivefold.data.curate.lexicon import measure_words
from fivefold.data.curate.sample import sample_shards
from fivefold.data.curate.shard import find_shards
from fivefold.data.curate.words import unicode_words
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.stages import TokenizerStage, TokensStage
from fivefold.manifest import describe_run
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.models.preset import preset
from fivefold.recipes.nano import nano
from fivefold.stage import ProgressTask, Selection, Stage, StageContext, run_stages
from fivefold.text.config import TokenizerConfig
from fivefold.train.config import PretrainConfig
from fivefold.train.stages import PretrainStage

Rung = Literal["raw", "heuristics", "deduplicated", "classified"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
SOURCES = (
    "anarchism",
    "debian-reference-en",
    "libreoffice-help-en",
    "postgresql-doc",
    "python-doc",
    "sqlite-doc",
)
GOOD = ("anarchism", "debian-reference-en")
_GRAM_WORDS = 13
_MOST_SHARED = 0.1


class LadderConfig(Config):
    """What the rungs are made of."""

    sources: tuple[str, ...] = SOURCES
    """Catalogue names, files or directories."""
    good: tuple[str, ...] = GOOD
    """Sources that the classifier takes for good."""
    keep_share: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of documents that the classifier keeps."""
    max_bytes_per_source: int | None = None
    """Bytes of raw pages of a package; None: all."""
    heldout_bytes: int = pydantic.Field(default=300_000, gt=0)
    """Bytes of the held-out set."""
    tasks: int = 4
    """Shares into which curation is cut."""
    workers: Runtime[int] = 1
    """Processes of curation."""


class PagesStage(Stage):
    """Makes all rungs and the held-out set; needs nothing."""

    what = "makes the rungs"
    is_seeded = False
    config: LadderConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write RUNG.jsonl.zst and heldout.jsonl.zst."""
        config, state = self.config, out / "state"
        found = find_shards(config.sources)
        shards = sample_shards(found, config.max_bytes_per_source, state / "sample")
        whole = CurateConfig(
            language=LanguageConfig(keep=()), tasks=config.tasks, workers=config.workers
        )
        bare = {"minhash": None, "bloom": None}
        rungs = {
            "raw": whole.model_copy(update={"heuristics": None, **bare}),
            "heuristics": whole.model_copy(update=bare),
            "deduplicated": whole,
        }
        files = {
            name: run_dclm_baseline(shards, one, state / "work").documents
            for name, one in rungs.items()
        }
        clean = list(_read(files["deduplicated"]))
        heldout = choose_heldout(clean, config.heldout_bytes)
        rest = [one for one in clean if one.id not in {two.id for two in heldout}]
        training = ClassifierTrainingConfig(
            dim=20,
            epochs=25,
            learning_rate=0.5,
            buckets=50_000,
            max_characters=4_000,
            heldout_share=0.2,
        )
        good = [one for one in rest if one.source in config.good]
        other = [one for one in rest if one.source not in config.good]
        train_classifier(good, other, state / "classifier", training)
        classifier = QualityClassifierConfig(
            model=str(state / "classifier" / "model.bin"), keep_share=config.keep_share
        )
        selecting = whole.model_copy(update={"classifier": classifier})
        files["classified"] = run_dclm_baseline(shards, selecting, state / "work").documents
        with document_writer(out / "heldout.jsonl.zst") as write:
            for document in by_source(heldout):
                write(document)
        near = shared_grams(heldout)
        for name in RUNGS:
            with document_writer(out / f"{name}.jsonl.zst") as write:
                for document in by_source(_read(files[name])):
                    if shares(document, near) <= _MOST_SHARED:
                        write(document)
        shutil.rmtree(state)


def _read(files: Iterable[Path]) -> Iterator[Document]:
    for file in files:
        yield from read_documents(file)


def by_source(documents: Iterable[Document]) -> list[Document]:
    """Return the documents with those of a source together, else as they come."""
    return sorted(documents, key=lambda one: one.source)


def choose_heldout(documents: Sequence[Document], size_bytes: int) -> list[Document]:
    """Return the documents with the smallest hashes, up to a tenth of each source."""
    left: dict[str, float] = {}
    for one in documents:
        left[one.source] = left.get(one.source, 0.0) + len(one.text.encode()) / 10
    scale = min(1.0, size_bytes / sum(left.values()))
    chosen = []
    ranked = sorted(
        documents, key=lambda d: (xxhash.xxh3_64_intdigest(d.id.encode(), seed=11), d.id)
    )
    for one in ranked:
        size = len(one.text.encode())
        if size <= scale * left[one.source]:
            chosen.append(one)
            left[one.source] -= size / scale
    return chosen


def _grams(document: Document) -> np.ndarray:
    words = unicode_words(document.text.lower())
    return (
        Grams(measure_words(words)).hashes(_GRAM_WORDS)
        if len(words) >= _GRAM_WORDS
        else np.empty(0, np.uint64)
    )


def shared_grams(heldout: Sequence[Document]) -> np.ndarray:
    """Return the hashes of all 13-word sequences of the held-out set, sorted."""
    return np.unique(np.concatenate([_grams(one) for one in heldout]))


def shares(document: Document, grams: np.ndarray) -> float:
    """Return the share of a document's 13-word sequences that are among `grams`."""
    own = _grams(document)
    return float(np.isin(own, grams).mean()) if len(own) else 0.0


class RungConfig(Config):
    """One grade of the corpus."""

    rung: Rung
    """Which."""


class RungStage(Stage):
    """Gives one rung the form of a corpus; needs `pages`."""

    what = "takes one rung"
    is_seeded = False
    config: RungConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write train.jsonl.zst and heldout.jsonl.zst."""
        shutil.copyfile(inputs["pages"] / f"{self.config.rung}.jsonl.zst", out / "train.jsonl.zst")
        shutil.copyfile(inputs["pages"] / "heldout.jsonl.zst", out / "heldout.jsonl.zst")


def ladder(config: LadderConfig, options: argparse.Namespace) -> list[Stage]:
    """Return the stages: pages, rungs, tokenizer, and for each rung tokens and a model a seed."""
    vocabulary = TokenizerConfig(vocab_size=options.vocabulary)
    stages: list[Stage] = [
        PagesStage("pages", config),
        *(RungStage(name, RungConfig(rung=name), {"pages": "pages"}) for name in RUNGS),
        TokenizerStage(
            "tokenizer", TokenizerTrainingConfig(tokenizer=vocabulary), {"corpus": "raw"}
        ),
    ]
    for name in RUNGS:
        tokens = f"{name}_tokens"
        needs = {"corpus": name, "tokenizer": "tokenizer"}
        stages.append(TokensStage(tokens, TokensConfig(contexts=(options.context,)), needs))
        for seed in options.seeds:
            needs = {"tokens": tokens, "tokenizer": "tokenizer"}
            stages.append(PretrainStage(model_name(name, seed), training(options), needs))
    return stages


def model_name(rung: str, seed: int) -> str:
    """Return the stage in which a model is trained."""
    return f"{rung}_seed{seed}"


def training(options: argparse.Namespace) -> PretrainConfig:
    """Return nano's own pre-training, of as many tokens as asked."""
    config = next(s.config for s in nano() if s.name == "pretrain")
    assert isinstance(config, PretrainConfig)
    changes = {
        "model": preset("nano", vocab_size=options.vocabulary),
        "context_tokens": options.context,
        "total_tokens": options.tokens,
        "sample_count": 0,
        "validation_steps": 100,
        "checkpoint_steps": 50,
    }
    return config.model_copy(update=changes)


class _Silent:
    def advance(self, amount: float = 1, **shown: str) -> None:
        pass


@contextmanager
def _track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    yield _Silent()


def measure(run: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a rung: what it holds, and bits per byte of each seed."""
    final = {
        record["stage"]: record["validation/final_bits_per_byte"]
        for record in read_metrics(run / "metrics.jsonl")
        if "validation/final_bits_per_byte" in record
    }
    rows = []
    for name in RUNGS:
        documents = list(read_documents(run / name / "train.jsonl.zst"))
        summary = json.loads((run / f"{name}_tokens" / "tokens.json").read_text())
        bits = [final[model_name(name, seed)] for seed in options.seeds]
        rows.append(
            {
                "rung": name,
                "documents": len(documents),
                "megabytes": round(sum(len(d.text.encode()) for d in documents) / 1e6, 3),
                "tokens": summary["tokens"]["train"],
                "epochs": round(options.tokens / summary["tokens"]["train"], 3),
                "bits_per_byte": [round(one, 4) for one in bits],
                "mean": round(statistics.fmean(bits), 4),
                "spread": round(max(bits) - min(bits), 4),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| rung | documents | MB | tokens | epochs | bits a byte | spread over seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row[k] for k in ("rung", "documents", "megabytes", "tokens", "epochs", "mean")]
        lines.append("| " + " | ".join(str(cell) for cell in [*cells, row["spread"]]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Climb the ladder and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory in which the stages live")
    parser.add_argument("--tokens", type=int, default=400_000, help="training tokens of each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sources", nargs="+", default=list(SOURCES))
    parser.add_argument("--good", nargs="+", default=list(GOOD))
    parser.add_argument("--keep-share", type=float, default=0.5)
    parser.add_argument("--max-bytes", type=int, help="bytes of raw pages of a package")
    parser.add_argument("--heldout-bytes", type=int, default=300_000)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--smoke", action="store_true", help="a minute: little text, few tokens")
    options = parser.parse_args()
    if options.smoke:
        options.max_bytes, options.heldout_bytes = 2_500_000, 20_000
        options.tokens, options.context, options.vocabulary = 8_192, 64, 600
        options.sources = ["anarchism", "debian-reference-en", "sqlite-doc"]
    config = LadderConfig(
        sources=tuple(options.sources),
        good=tuple(options.good),
        keep_share=options.keep_share,
        max_bytes_per_source=options.max_bytes,
        heldout_bytes=options.heldout_bytes,
        workers=options.threads,
    )
    stages = ladder(config, options)
    options.run.mkdir(parents=True, exist_ok=True)

    def context_of(stage: Stage) -> StageContext:
        seed = next((s for s in options.seeds if stage.name.endswith(f"_seed{s}")), 0)
        metrics = StageMetrics(options.run / "metrics.jsonl", stage.name)
        return StageContext(seed, "cpu", options.threads, metrics, _track)

    run_stages(stages, options.run, Selection(), context_of)
    rows = measure(options.run, options)
    by_rung = {row["rung"]: row for row in rows}
    summary = {
        "name": "quality_ladder",
        "ratio": round(by_rung["raw"]["mean"] / by_rung["classified"]["mean"], 4),
        "ours": by_rung["classified"]["mean"],
        "peer": by_rung["raw"]["mean"],
        "unit": "bits a byte of held-out text, raw over classified, equal tokens",
        "pairs": len(options.seeds),
        "tokens": options.tokens,
        "rungs": {row["rung"]: row["mean"] for row in rows},
    }
    made_by = describe_run(
        "quality_ladder",
        seed=options.seeds[0],
        device="cpu",
        threads=options.threads,
        config_hash="",
        command=[],
    )
    record = {**summary, "rows": rows, "config": config.model_dump(mode="json"), "made_by": made_by}
    write_json(options.run / "quality_ladder.json", record)
    if not options.smoke:
        write_json(RESULTS / "quality_ladder.json", record)
    print(table(rows))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
