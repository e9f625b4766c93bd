"""The web pipeline in DCLM-Baseline's order, from files of any kind to documents and accounts.

Address, extraction, language, heuristics (which begin by taking addresses out of the text; DCLM
does so before language); exact copies and near-duplicates (MinHash), repeated paragraphs and pages
(Bloom); then, where a model is given, the quality classifier. DCLM-Baseline itself goes from
heuristics to Bloom; `minhash=None` is that.

Stages of datatrove's local executor, each a folder: `extract`, `filter`, `sign` and `choose` (all
signatures at once), `dedup` (one task: its order matters), `score` and `select`. A folder is named
by a hash of its configs, its models and lists, and of what went into it, so that a relaunch redoes
only tasks that did not finish, a changed config only what is downstream, and a changed input
everything.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from fivefold.artifact import read_json, write_json
from fivefold.config import Config, hash_config
from fivefold.data.curate.account import Account, check_chain, read_accounts
from fivefold.data.curate.classifier import score_threshold
from fivefold.data.curate.config import CurateConfig
from fivefold.data.curate.shard import Shard
from fivefold.errors import MissingFileError
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
        MissingFileError: an input, a list or a model does not exist.
        CorruptFileError: an input is cut or altered.
        QuarantineError: steps failed on too many documents.
    """
    from fivefold.data.curate.summary import read_summary

    run = _Run(stage_folders(shards, config, out), config, track)
    run.extract(shards)
    run.filter()
    documents = run.deduplicate()
    last, tasks, threshold = "dedup", 1, None
    if config.classifier:
        threshold = run.score(documents)
        documents = run.select(documents, threshold)
        last, tasks = "select", len(documents)
    check_chain(list(run.accounts.items()), config.max_quarantined)
    summary = read_summary(run.folders[last] / "summary", tasks)
    write_json(out / "accounts.json", {name: one.to_json() for name, one in run.accounts.items()})
    write_json(out / "summary.json", summary.to_json())
    return Curated(documents, run.accounts, summary, run.empty_files(), threshold)


class _Run:
    """The stages one after the other, and the accounts that they leave."""

    def __init__(self, folders: dict[str, Path], config: CurateConfig, track: Track | None) -> None:
        self.folders = folders
        self.config = config
        self.accounts: dict[str, Account] = {}
        self._track = track

    def extract(self, shards: Sequence[Shard]) -> None:
        """Read raw pages, refuse addresses, extract text."""
        from fivefold.data.curate.extract_step import ExtractText, ReadShards, WriteTask
        from fivefold.data.curate.step import FilterUrls

        folder, seconds = self.folders["extract"], self.config.page_seconds
        steps: list[JudgeStep] = [
            *(
                [FilterUrls(self.config.url, folder / "accounts", seconds)]
                if self.config.url
                else []
            ),
            ExtractText(self.config.extract, folder / "accounts", seconds),
        ]
        reader = ReadShards(shards, self.config.extract, folder / "reading")
        self._execute("extract", [reader, *steps, WriteTask(folder / "documents")])
        self._enter(steps)

    def filter(self) -> None:
        """Choose languages, apply heuristics, sort each task's documents."""
        from fivefold.data.curate.dedup_step import WriteSorted
        from fivefold.data.curate.step import FilterByHeuristics, FilterLanguages, ReadDocuments

        folder, seconds = self.folders["filter"], self.config.page_seconds
        config, accounts = self.config, folder / "accounts"
        steps: list[JudgeStep] = [
            *([FilterLanguages(config.language, accounts, seconds)] if config.language else []),
            *(
                [FilterByHeuristics(config.heuristics, accounts, seconds)]
                if config.heuristics
                else []
            ),
        ]
        reader = ReadDocuments(self._task_files("extract"))
        self._execute("filter", [reader, *steps, WriteSorted(folder / "documents")])
        self._enter(steps)

    def deduplicate(self) -> list[Path]:
        """Drop copies, near-duplicates and what was seen before; return the files that are left."""
        from fivefold.data.curate.dedup_step import (
            ChooseKeepers,
            DropDuplicates,
            ReadMerged,
            SignDocuments,
            WriteDocuments,
        )
        from fivefold.data.curate.step import ReadDocuments
        from fivefold.data.curate.summary import Summarise

        config, tasks, folders = self.config, self.config.tasks, self.folders
        reader = ReadDocuments(self._task_files("filter"))
        self._execute("sign", [reader, SignDocuments(config.minhash, folders["sign"])])
        chooser = ChooseKeepers(config.minhash, folders["sign"], folders["choose"], tasks)
        self._execute("choose", [chooser], 1)
        folder = folders["dedup"]
        drop = DropDuplicates(config.bloom, folder / "accounts", config.page_seconds)
        steps: list[PipelineStep] = [
            ReadMerged(folders["filter"] / "documents", folders["choose"], tasks),
            drop,
            Summarise(folder / "summary"),
            WriteDocuments(folder / "documents", _CHARACTERS_PER_FILE),
        ]
        self._execute("dedup", steps, 1)
        self._enter([drop], 1)
        return sorted((folder / "documents").glob("*.jsonl.zst"))

    def score(self, documents: list[Path]) -> float:
        """Score every document; return the least score that stays."""
        from fivefold.data.curate.classify_step import ScoreDocuments, read_scores, score_file

        config, folder = self.config.classifier, self.folders["score"]
        assert config, "nothing to score with"
        scorer = ScoreDocuments(documents, config, folder, self.config.page_seconds)
        self._execute("score", [scorer], len(documents))
        scores = [read_scores(score_file(folder, file))[1] for file in documents]
        return score_threshold(np.concatenate(scores), config.keep_share, config.min_score)

    def select(self, documents: list[Path], threshold: float) -> list[Path]:
        """Drop the documents below the threshold; return the files that are left."""
        from fivefold.data.curate.classify_step import DropLowScores, ReadScored
        from fivefold.data.curate.extract_step import WriteTask
        from fivefold.data.curate.summary import Summarise

        folder = self.folders["select"]
        drop = DropLowScores(threshold, folder / "accounts", self.config.page_seconds)
        steps: list[PipelineStep] = [
            ReadScored(documents, self.folders["score"]),
            drop,
            Summarise(folder / "summary"),
            WriteTask(folder / "documents"),
        ]
        self._execute("select", steps, len(documents))
        self._enter([drop], len(documents))
        return sorted((folder / "documents").glob("*.jsonl.zst"))

    def empty_files(self) -> list[str]:
        """Return the input files in which there was no page."""
        folder = self.folders["extract"] / "reading"
        tasks = (read_json(folder / f"{task:05d}.json") or {} for task in range(self.config.tasks))
        return sorted(name for task in tasks for name in task.get("empty", []))

    def _task_files(self, stage: str) -> list[Path]:
        from fivefold.data.curate.dedup_step import task_file

        folder = self.folders[stage] / "documents"
        return [task_file(folder, task) for task in range(self.config.tasks)]

    def _execute(
        self, stage: str, steps: Sequence["PipelineStep"], tasks: int | None = None
    ) -> None:
        """Run a stage's tasks that have not been finished."""
        from fivefold.data.curate.executor import run_tasks

        tasks, log = tasks or self.config.tasks, self.folders[stage] / "log"
        run_tasks(stage, steps, tasks, min(tasks, self.config.workers), log, self._track)

    def _enter(self, steps: Sequence["JudgeStep"], tasks: int | None = None) -> None:
        for step in steps:
            self.accounts[step.name] = read_accounts(
                Path(step.accounts), tasks or self.config.tasks
            )


def stage_folders(shards: Sequence[Shard], config: CurateConfig, out: Path) -> dict[str, Path]:
    """Return each stage's folder, named by what its content depends on.

    Raises:
        MissingFileError: an input, a list or a model does not exist.
    """
    classifier = config.classifier
    model = classifier and (classifier.model, classifier.label)
    parts: dict[str, list[Config | object]] = {
        "extract": [
            config.url,
            config.extract,
            config.url and digest_file(config.url.domain_file),
        ],
        "filter": [
            config.language,
            config.heuristics,
            config.language and digest_file(config.language.model),
        ],
        "sign": [config.minhash],
        "choose": [config.minhash],
        "dedup": [config.bloom],
        "score": [model, classifier and digest_file(classifier.model)],
        "select": [classifier],
    }
    state = [str(config.tasks)]
    for shard in shards:
        facts = {**vars(shard), "path": digest_file(str(shard.path))}
        state.append(json.dumps(facts, sort_keys=True))
    folders = {}
    for name, values in parts.items():
        hashes = [hash_config(one) if isinstance(one, Config) else one for one in values]
        state = [xxhash.xxh3_128_hexdigest(json.dumps([*state, name, *hashes]).encode())]
        folders[name] = out / f"{name}-{state[0][:16]}"
    return folders


def digest_file(path: str) -> str:
    """Return 32 hex digits of a file's content; none for an empty path.

    Raises:
        MissingFileError: no such file.
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
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            content.update(block)
    return content.hexdigest()
