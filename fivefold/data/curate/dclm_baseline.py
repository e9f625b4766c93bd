"""The web pipeline in DCLM-Baseline's order, from files of any kind to documents and accounts.

Address, extraction, language, heuristics (which begin by taking addresses out of the text; DCLM
does so before language); exact copies and near-duplicates (MinHash), repeated paragraphs and pages
(Bloom); then, where there is a list, benchmark items, and, where a model is given, the quality
classifier. DCLM-Baseline itself goes from heuristics to Bloom; `minhash=None` is that.

Stages of datatrove's local executor, each a folder: `benchmarks` (their index), `extract`,
`filter`, `sign` and `choose` (all signatures at once), `dedup` (one task: its order matters),
`decontaminate`, `score` and `select`; see `run`. Models and lists count by their content.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from fivefold.config import Config
from fivefold.data.curate.account import Account
from fivefold.data.curate.benchmark_items import decontamination_parts
from fivefold.data.curate.classifier import score_threshold
from fivefold.data.curate.config import CurateConfig, PageConfig, QualityClassifierConfig
from fivefold.data.curate.run import CurationRun, name_folders, remove_results, write_results
from fivefold.data.curate.shard import Shard
from fivefold.errors import MissingFileError, StorageError
from fivefold.stage import Track

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep

    from fivefold.data.curate.step import JudgeStep
    from fivefold.data.curate.summary import Summary


@dataclass(frozen=True)
class Curated:
    """A finished run of the pipeline."""

    documents: list[Path]
    """Files of documents, in the order of ids."""
    accounts: dict[str, Account]
    """The account of each step, in order."""
    summary: "Summary"
    """What the documents are."""
    empty: list[str]
    """Input files in which there was no page."""
    threshold: float | None = None
    """The classifier's least score that stayed."""


_CHARACTERS_PER_FILE = 1 << 28


def run_dclm_baseline(
    shards: Sequence[Shard], config: CurateConfig, out: Path, track: Track | None = None
) -> Curated:
    """Curate `shards` into `out`; what lies there from before is used again.

    Writes `accounts.json` and `summary.json` into `out`, and documents into the last stage's
    folder.

    Raises:
        MissingFileError: an input, a benchmark, a list or a model does not exist.
        CorruptFileError: an input is cut or altered.
        QuarantineError: steps failed on too many documents.
    """
    from fivefold.data.curate.summary import read_summary

    remove_results(out)
    run = CurationRun(stage_folders(shards, config, out), config, track)
    documents = curate_pages(run, shards, config)
    last, tasks, threshold = "dedup", 1, None
    if config.benchmarks:
        last, tasks = "decontaminate", len(documents)
    if config.classifier:
        threshold = _score(run, documents, config.classifier, config.page_seconds)
        documents = _select(run, documents, threshold, config.page_seconds)
        last, tasks = "select", len(documents)
    summary = read_summary(run.folders[last] / "summary", tasks)
    write_results(out, run.accounts, summary)
    run.check_accounts()
    return Curated(documents, run.accounts, summary, run.empty_shards("extract"), threshold)


def curate_pages(run: CurationRun, shards: Sequence[Shard], config: PageConfig) -> list[Path]:
    """Run all stages but the choice by quality; return the files of distinct texts."""
    run.index_benchmarks()
    _extract(run, shards, config)
    _filter(run, config)
    files = run.deduplicate(config.minhash, config.bloom, _CHARACTERS_PER_FILE)
    return run.decontaminate(files)


def _extract(run: CurationRun, shards: Sequence[Shard], config: PageConfig) -> None:
    """Read raw pages, refuse addresses, extract text."""
    from fivefold.data.curate.extract_step import ExtractText, ReadShards, WriteTask
    from fivefold.data.curate.step import FilterUrls

    folder, seconds = run.folders["extract"], config.page_seconds
    accounts = folder / "accounts"
    steps: list[JudgeStep] = [
        *([FilterUrls(config.url, accounts, seconds)] if config.url else []),
        ExtractText(config.extract, accounts, seconds),
    ]
    reader = ReadShards(shards, config.extract, folder / "reading", seconds)
    run.execute("extract", [reader, *steps, WriteTask(folder / "documents")])
    run.enter("extract", [step.name for step in steps])


def _filter(run: CurationRun, config: PageConfig) -> None:
    """Choose languages, apply heuristics, sort each task's documents."""
    from fivefold.data.curate.dedup_step import WriteSorted
    from fivefold.data.curate.step import FilterByHeuristics, FilterLanguages, ReadDocuments

    folder, seconds = run.folders["filter"], config.page_seconds
    accounts, heuristics = folder / "accounts", config.heuristics
    steps: list[JudgeStep] = [
        *([FilterLanguages(config.language, accounts, seconds)] if config.language else []),
        *([FilterByHeuristics(heuristics, accounts, seconds)] if heuristics else []),
    ]
    reader = ReadDocuments(run.task_files("extract"))
    run.execute("filter", [reader, *steps, WriteSorted(folder / "documents")])
    run.enter("filter", [step.name for step in steps])


def _score(
    run: CurationRun, documents: list[Path], config: QualityClassifierConfig, seconds: float
) -> float:
    """Score every document; return the least score that stays."""
    from fivefold.data.curate.classify_step import FAILED, ScoreDocuments, read_scores, score_file

    folder = run.folders["score"]
    scorer = ScoreDocuments(documents, config, folder, seconds)
    run.execute_scores("score", [scorer], len(documents))
    scores = np.concatenate([read_scores(score_file(folder, file))[1] for file in documents])
    # A document on which the model failed is quarantined: it is none of those that compete.
    return score_threshold(scores[scores != FAILED], config.keep_share, config.min_score)


def _select(
    run: CurationRun, documents: list[Path], threshold: float, seconds: float
) -> list[Path]:
    """Drop the documents below the threshold; return the files that are left."""
    from fivefold.data.curate.classify_step import DropLowScores, ReadScored
    from fivefold.data.curate.extract_step import WriteTask
    from fivefold.data.curate.summary import Summarise

    folder = run.folders["select"]
    drop = DropLowScores(threshold, folder / "accounts", seconds)
    steps: list[PipelineStep] = [
        ReadScored(documents, run.folders["score"]),
        drop,
        Summarise(folder / "summary"),
        WriteTask(folder / "documents"),
    ]
    run.execute("select", steps, len(documents))
    run.enter("select", [drop.name], len(documents))
    return sorted((folder / "documents").glob("*.jsonl.zst"))


def stage_folders(shards: Sequence[Shard], config: CurateConfig, out: Path) -> dict[str, Path]:
    """Return each stage's folder, named by what its content depends on.

    Raises:
        MissingFileError: an input, a list or a model does not exist.
    """
    classifier = config.classifier
    model = classifier and (classifier.model, classifier.label)
    parts = {
        **page_parts(config),
        "score": [model, classifier and digest_file(classifier.model)],
        "select": [classifier],
    }
    folders = name_folders(digest_shards(shards, config.tasks), parts, out)
    return folders | name_folders([], {"benchmarks": parts["decontaminate"]}, out)


def page_parts(config: PageConfig) -> dict[str, Sequence[Config | object]]:
    """Return what the stages of `curate_pages` depend on, for `name_folders`.

    The folder `benchmarks` depends on the parts of `decontaminate` alone.

    Raises:
        MissingFileError: a benchmark, a list or a model does not exist.
    """
    domains = config.url and digest_file(config.url.domain_file)
    languages = config.language and digest_file(config.language.model)
    return {
        "extract": [config.url, config.extract, domains],
        "filter": [config.language, config.heuristics, languages],
        "sign": [config.minhash],
        "choose": [config.minhash],
        "dedup": [config.bloom],
        "decontaminate": decontamination_parts(config.benchmarks),
    }


def digest_shards(shards: Sequence[Shard], tasks: int) -> list[str]:
    """Return what a run over `shards` begins with, for `name_folders`.

    Raises:
        MissingFileError: an input does not exist.
    """
    facts = [{**vars(shard), "path": digest_file(str(shard.path))} for shard in shards]
    return [str(tasks), *(json.dumps(one, sort_keys=True) for one in facts)]


def digest_file(path: str) -> str:
    """Return 32 hex digits of a file's content; none for an empty path.

    Raises:
        MissingFileError: no such file.
        StorageError: it cannot be read.
    """
    if not path:
        return ""
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(
            expected=f"a file at `{path}`",
            found="nothing",
            fix="Correct the list of sources, or the config that names it",
        )
    content = xxhash.xxh3_128()
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                content.update(block)
    except OSError as error:
        raise StorageError(
            expected=f"to be able to read `{path}`",
            found=str(error.strerror),
            fix="Correct the file's permissions, or leave it out of the sources",
        ) from error
    return content.hexdigest()
