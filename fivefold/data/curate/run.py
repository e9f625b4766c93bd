"""A run of curation: its stages' folders, what their tasks leave, and de-duplication in the middle.

What the recipes have in common, benchmark items included. A stage is a list of datatrove steps in a
folder of its own, named by a hash of its configs and of all that went into it: so a relaunch redoes
only tasks that did not finish, a changed config only what is downstream, and a changed input
everything.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from fivefold.artifact import read_json, remove, write_json
from fivefold.config import Config, hash_config
from fivefold.data.curate.account import Account, QuarantineError, check_chain, read_accounts
from fivefold.data.curate.config import BloomConfig, EngineConfig, MinHashConfig
from fivefold.stage import Track

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep

    from fivefold.data.curate.step import JudgeStep
    from fivefold.data.curate.summary import Summary

logger = logging.getLogger(__name__)

BENCHMARKS_FILE = "benchmarks.json"
"""Beside the stages' folders: counts of items by benchmark, and those that are not in the cache."""
_APART = ("benchmarks", "detector")
"""Stages that read no document of the run."""
_SCORES = ("rule", "score", "assess")
"""Stages of scores, whose traces are accounted for where the scores are needed."""
_TRACED_IN = {"dedup": "sign", "refuse": "outline"}
"""Stages that account for what an earlier one failed on."""


class CurationRun:
    """Executes stages one after the other and collects the accounts that they leave."""

    def __init__(
        self, folders: Mapping[str, Path], config: EngineConfig, track: Track | None
    ) -> None:
        """Work in `folders`, by stage."""
        self.folders = folders
        self.accounts: dict[str, Account] = {}
        self._stages: dict[str, str] = {}
        self._config = config
        self._track = track

    def execute(
        self, stage: str, steps: Sequence["PipelineStep"], tasks: int | None = None
    ) -> None:
        """Run a stage's tasks that have not been finished."""
        from fivefold.data.curate.executor import run_tasks

        tasks, log = tasks or self._config.tasks, self.folders[stage] / "log"
        run_tasks(
            stage,
            steps,
            tasks,
            min(tasks, self._config.workers),
            log,
            self._track,
            self._config.executor,
        )

    def execute_scores(self, stage: str, steps: Sequence["PipelineStep"], tasks: int) -> None:
        """Run a stage that writes scores; those of runs that did not keep traces are made again."""
        from fivefold.data.curate.classify_step import has_traces

        if not has_traces(self.folders[stage]):
            logger.info("%s: scores of an earlier version of Fivefold are made again", stage)
            remove(self.folders[stage])
        self.execute(stage, steps, tasks)

    def enter(self, stage: str, names: Sequence[str], tasks: int | None = None) -> None:
        """Collect the accounts of a stage's steps."""
        accounts = self.folders[stage] / "accounts"
        for name in names:
            self.accounts[name] = read_accounts(accounts / name, tasks or self._config.tasks)
            self._stages[name] = stage

    def check_accounts(self, left_out: Collection[str] = ()) -> None:
        """Assert that the accounts are a chain, and that few documents failed; see `check_chain`.

        Raises:
            QuarantineError: too many; the stages that failed run again at the next launch.
        """
        chain = [(name, one) for name, one in self.accounts.items() if name not in left_out]
        try:
            check_chain(chain, self._config.max_quarantined)
        except QuarantineError:
            for stage in {self._stages[name] for name, one in chain if one.quarantined}:
                self.forget(self._where_it_failed(stage))
            raise

    def forget(self, stage: str) -> None:
        """Remove what a stage and those after it made: what failed there is no finished work.

        So whatever mends it, even what is in no folder's name (a server, `page_seconds`), does so
        at the next launch.
        """
        names = list(self.folders)
        for name in names[names.index(stage) :]:
            if name not in _APART:
                remove(self.folders[name])

    def _where_it_failed(self, stage: str) -> str:
        """Return the first stage that left traces of what `stage` accounts for."""
        from fivefold.data.curate.classify_step import holds_failures

        if stage in ("select", "natural"):
            known = [name for name in _SCORES if name in self.folders]
            return next((n for n in known if holds_failures(self.folders[n])), stage)
        earlier = _TRACED_IN.get(stage, stage)
        return earlier if earlier in self.folders else stage

    def task_files(self, stage: str) -> list[Path]:
        """Return the files of documents that a stage's tasks write."""
        from fivefold.data.curate.dedup_step import task_file

        folder = self.folders[stage] / "documents"
        return [task_file(folder, task) for task in range(self._config.tasks)]

    def empty_shards(self, stage: str) -> list[str]:
        """Return the shards in which the readers of a stage found nothing."""
        folder = self.folders[stage] / "reading"
        tasks = (read_json(folder / f"{task:05d}.json") or {} for task in range(self._config.tasks))
        return sorted(name for task in tasks for name in task.get("empty", []))

    def deduplicate(
        self, minhash: MinHashConfig | None, bloom: BloomConfig | None, characters_per_file: int
    ) -> list[Path]:
        """Drop copies, near-duplicates and what was seen before, over the whole of `filter`.

        Uses the folders `filter`, `sign`, `choose` and `dedup`; returns the files of what is left,
        in the order of ids, and leaves a summary of it.
        """
        from fivefold.data.curate.dedup_step import (
            ChooseKeepers,
            DropDuplicates,
            ReadMerged,
            SignDocuments,
            WriteDocuments,
        )
        from fivefold.data.curate.step import ReadDocuments
        from fivefold.data.curate.summary import Summarise

        tasks, folders, seconds = self._config.tasks, self.folders, self._config.page_seconds
        reader = ReadDocuments(self.task_files("filter"))
        self.execute("sign", [reader, SignDocuments(minhash, folders["sign"], seconds)])
        chooser = ChooseKeepers(minhash, folders["sign"], folders["choose"], tasks)
        self.execute("choose", [chooser], 1)
        folder = folders["dedup"]
        drop = DropDuplicates(bloom, folder / "accounts", seconds)
        steps: list[PipelineStep] = [
            ReadMerged(folders["filter"] / "documents", folders["choose"], tasks),
            drop,
            Summarise(folder / "summary"),
            WriteDocuments(folder / "documents", characters_per_file),
        ]
        self.execute("dedup", steps, 1)
        self.enter("dedup", [drop.name], 1)
        return sorted((folder / "documents").glob("*.jsonl.zst"))

    def index_benchmarks(self) -> None:
        """Read the benchmarks: first of all, so that their mistakes come before hours of work.

        Uses the folder `benchmarks`; beside it a file says what is looked for.
        """
        from fivefold.data.curate.benchmark_items import missing_benchmarks
        from fivefold.data.curate.decontaminate_step import BuildBenchmarkIndex

        folder, config = self.folders["benchmarks"], self._config.benchmarks
        facts: dict[str, object] = {"counts": {}, "missing": []}
        if config is not None:
            self.execute("benchmarks", [BuildBenchmarkIndex(config, folder)], 1)
            counts = read_json(folder / "benchmarks.json") or {}
            facts = {"counts": counts, "missing": missing_benchmarks(config)}
        write_json(folder.parent / BENCHMARKS_FILE, facts)

    def benchmark_steps(self, stage: str) -> "list[JudgeStep]":
        """Return what takes benchmark items out of a stage's documents; nothing without a list."""
        from fivefold.data.curate.decontaminate_step import Decontaminate

        if self._config.benchmarks is None:
            return []
        index, accounts = self.folders["benchmarks"], self.folders[stage] / "accounts"
        return [Decontaminate(self._config.benchmarks, index, accounts, self._config.page_seconds)]

    def decontaminate(self, files: list[Path]) -> list[Path]:
        """Take benchmark items out of `files`; return the files of what is left.

        Uses the folder `decontaminate`, and leaves a summary there.
        """
        from fivefold.data.curate.extract_step import WriteTask
        from fivefold.data.curate.step import ReadDocuments
        from fivefold.data.curate.summary import Summarise

        folder, judges = self.folders["decontaminate"], self.benchmark_steps("decontaminate")
        if not judges:
            return files
        steps: list[PipelineStep] = [
            ReadDocuments(files),
            *judges,
            Summarise(folder / "summary"),
            WriteTask(folder / "documents"),
        ]
        self.execute("decontaminate", steps, len(files))
        self.enter("decontaminate", [judge.name for judge in judges], len(files))
        return sorted((folder / "documents").glob("*.jsonl.zst"))


def remove_results(out: Path) -> None:
    """Remove what an earlier run says of itself, which would be taken for this one's."""
    for name in ("accounts.json", "summary.json", "tiers.json", BENCHMARKS_FILE):
        remove(out / name)


def write_results(out: Path, accounts: Mapping[str, Account], summary: "Summary") -> None:
    """Write `accounts.json` and `summary.json`; before a check, so that they show why it fails."""
    write_json(out / "accounts.json", {name: one.to_json() for name, one in accounts.items()})
    write_json(out / "summary.json", summary.to_json())


def name_folders(
    begin: Sequence[str], parts: Mapping[str, Sequence[Config | object]], out: Path
) -> dict[str, Path]:
    """Return each stage's folder, named by `begin` and by the parts of it and of those before it.

    `begin` says what comes in; parts are configs, or values that are JSON.
    """
    state, folders = list(begin), {}
    for name, values in parts.items():
        hashes = [hash_config(one) if isinstance(one, Config) else one for one in values]
        state = [xxhash.xxh3_128_hexdigest(json.dumps([*state, name, *hashes]).encode())]
        folders[name] = out / f"{name}-{state[0][:16]}"
    return folders
