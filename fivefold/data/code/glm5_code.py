"""The code pipeline: repositories in, texts of repositories and issue sequences out.

GLM-5 (section 2.2 and 2.3) and GLM-4.5 (section 2.2) name the parts and publish no thresholds; what
is chosen here stands in `config`. Order: admit (path, size, recorded digest, encoding), language,
heuristics, secrets; exact copies and near-duplicates over all repositories; rule scores,
classifiers learned from their extremes, tiers; epochs by tier and language; concatenation with fill
in the middle. Beside it, from the same repositories, issue sequences. Where there is a list of
benchmarks, files go after de-duplication and sequences as soon as they are made.

Stages of datatrove's local executor, each a folder that is named by a hash of its config and of
what went into it: `benchmarks`, `read`, `filter`, `sign`, `choose`, `dedup`, `decontaminate`,
`rule`, `learn`, `score`, `select`, `pack`, and `issues`. A relaunch redoes only tasks that did not
finish, a changed config only what is downstream, whatever the number of workers.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.artifact import write_json
from fivefold.data.code.config import CodeConfig
from fivefold.data.code.repository import CodeShard, digest_repository
from fivefold.data.curate.benchmark_items import decontamination_parts
from fivefold.data.curate.dclm_baseline import Curated, digest_file
from fivefold.data.curate.run import CurationRun, name_folders, remove_results, write_results
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.step import JudgeStep

_CHARACTERS_PER_FILE = 1 << 26
_OF_ISSUES = ("issues", "issue_benchmarks")
"""Accounts of issue sequences, which no file becomes."""


def run_glm5_code(
    shards: Sequence[CodeShard], config: CodeConfig, out: Path, track: Track | None = None
) -> Curated:
    """Curate the repositories into `out`; what lies there from before is used again.

    Writes `accounts.json`, `summary.json` and `plan.json` into `out`, and documents into the last
    stages' folders.

    Raises:
        CorruptFileError: a repository or a file of rows is damaged.
        QuarantineError: steps failed on too many files, or changes.
    """
    remove_results(out)
    run = _Run(shards, config, out, track)
    run.index_benchmarks()
    run.read()
    run.filter()
    files = run.deduplicate(config.minhash, None, _CHARACTERS_PER_FILE)
    files = run.decontaminate(files)
    run.select(files, run.score(files))
    documents = [*run.pack(), *run.mine_issues()]
    write_results(out, run.accounts, run.summary)
    run.check_accounts(_OF_ISSUES)
    run.check_accounts(run.accounts.keys() - set(_OF_ISSUES))
    return Curated(documents, run.accounts, run.summary, run.empty_shards("read"))


class _Run(CurationRun):
    """The stages one after the other, and the accounts that they leave."""

    def __init__(
        self, shards: Sequence[CodeShard], config: CodeConfig, out: Path, track: Track | None
    ) -> None:
        from fivefold.data.curate.summary import Summary

        super().__init__(stage_folders(shards, config, out), config, track)
        self.shards, self.config, self.out = shards, config, out
        self.summary = Summary()

    def read(self) -> None:
        """Read files, admit them, name their languages."""
        from fivefold.data.code.step import AdmitFiles, IdentifyLanguages, ReadRepositories
        from fivefold.data.curate.extract_step import WriteTask

        folder, seconds = self.folders["read"], self.config.page_seconds
        reader = ReadRepositories(self.shards, self.config.admit, folder / "reading", seconds)
        accounts = folder / "accounts"
        steps = [AdmitFiles(accounts, seconds), IdentifyLanguages(accounts, seconds)]
        self.execute("read", [reader, *steps, WriteTask(folder / "documents")])
        self.enter("read", [step.name for step in steps])

    def filter(self) -> None:
        """Apply heuristics, scrub secrets, sort each task's files."""
        from fivefold.data.code.step import FilterCode, ScrubSecrets
        from fivefold.data.curate.dedup_step import WriteSorted
        from fivefold.data.curate.step import JudgeStep, ReadDocuments

        folder, config = self.folders["filter"], self.config
        accounts, seconds = folder / "accounts", config.page_seconds
        steps: list[JudgeStep] = []
        if config.heuristics:
            steps.append(FilterCode(config.heuristics, accounts, seconds))
        if config.secrets:
            steps.append(ScrubSecrets(config.secrets, accounts, seconds))
        reader = ReadDocuments(self.task_files("read"))
        self.execute("filter", [reader, *steps, WriteSorted(folder / "documents")])
        self.enter("filter", [step.name for step in steps])

    def score(self, files: list[Path]) -> Path:
        """Score every file; return the folder of the scores."""
        from fivefold.data.code.score_step import LearnQuality, ScoreCode

        config, folders, seconds = self.config.classifier, self.folders, self.config.page_seconds
        self.execute_scores("rule", [ScoreCode(files, folders["rule"], seconds)], len(files))
        if config is None:
            return folders["rule"]
        learner = LearnQuality(files, folders["rule"], folders["learn"] / "models", config)
        self.execute("learn", [learner], 1)
        models = (folders["learn"] / "models", config.training.max_characters)
        scorer = ScoreCode(files, folders["score"], seconds, models)
        self.execute_scores("score", [scorer], len(files))
        return folders["score"]

    def select(self, files: list[Path], scores: Path) -> None:
        """Assign tiers, draw copies, bring each repository's files together."""
        from fivefold.data.code.pack_step import WriteBuckets
        from fivefold.data.code.score_step import AssignTiers, DrawCopies, make_plan
        from fivefold.data.curate.classify_step import ReadScored

        config, folder = self.config, self.folders["select"]
        plan = make_plan(files, scores, config.tiers, config.sampling)
        write_json(self.out / "plan.json", plan.to_json())
        accounts, seconds = folder / "accounts", config.page_seconds
        tiers, draw = AssignTiers(plan, accounts, seconds), DrawCopies(plan, accounts, seconds)
        writer = WriteBuckets(folder / "buckets", config.tasks)
        self.execute("select", [ReadScored(files, scores), tiers, draw, writer], len(files))
        self.enter("select", [tiers.name, draw.name], len(files))

    def pack(self) -> list[Path]:
        """Join the files of each repository; return the files of the texts."""
        from fivefold.data.code.pack_step import PackRepositories, WriteTexts
        from fivefold.data.curate.summary import Summarise

        folder, buckets = self.folders["pack"], self.folders["select"] / "buckets"
        packer = PackRepositories(
            buckets, self.config.pack, folder / "accounts", self.config.page_seconds
        )
        writer = WriteTexts(folder / "documents", "code")
        steps = [packer, Summarise(folder / "summary"), writer]
        self.execute("pack", steps)
        self.enter("pack", [packer.name])
        return self._finish("pack", "code")

    def mine_issues(self) -> list[Path]:
        """Make issue sequences; return their files."""
        from fivefold.data.code.pack_step import MineIssues, WriteTexts
        from fivefold.data.curate.summary import Summarise

        config, folder = self.config, self.folders["issues"]
        if config.issues is None or not any(shard.kind == "git" for shard in self.shards):
            return []
        miner = MineIssues(
            self.shards, config.issues, config.secrets, folder / "accounts", config.page_seconds
        )
        writer = WriteTexts(folder / "documents", "issues")
        judges = self._issue_judges()
        self.execute("issues", [miner, *judges, Summarise(folder / "summary"), writer])
        self.enter("issues", [miner.name, *(judge.name for judge in judges)])
        return self._finish("issues", "issues")

    def _issue_judges(self) -> list["JudgeStep"]:
        """Return what drops sequences with benchmark items; a cut would break their diffs."""
        from fivefold.data.curate.decontaminate_step import Decontaminate

        if self.config.benchmarks is None:
            return []
        whole = self.config.benchmarks.model_copy(update={"policy": "drop"})
        index, accounts = self.folders["benchmarks"], self.folders["issues"] / "accounts"
        seconds = self.config.page_seconds
        return [Decontaminate(whole, index, accounts, seconds, "issue_benchmarks")]

    def _finish(self, stage: str, kind: str) -> list[Path]:
        from fivefold.data.code.pack_step import text_file
        from fivefold.data.curate.summary import read_summary

        folder = self.folders[stage]
        self.summary.add(read_summary(folder / "summary", self.config.tasks).to_json())
        documents = folder / "documents"
        return [text_file(documents, kind, task) for task in range(self.config.tasks)]


def stage_folders(shards: Sequence[CodeShard], config: CodeConfig, out: Path) -> dict[str, Path]:
    """Return each stage's folder, named by what its content depends on.

    Raises:
        CorruptFileError: a git repository without a commit.
        MissingFileError: a dump of issues, or a benchmark, does not exist.
    """
    facts = [{**asdict(one), "path": digest_repository(one, config.admit)} for one in shards]
    begin = [str(config.tasks), json.dumps(facts, sort_keys=True)]
    benchmarks = decontamination_parts(config.benchmarks)
    parts = {
        "read": [config.admit],
        "filter": [config.heuristics, config.secrets],
        "sign": [config.minhash],
        "choose": [],
        "dedup": [],
        "decontaminate": benchmarks,
        "rule": [],
        "learn": [config.classifier],
        "score": [],
        "select": [config.tiers, config.sampling],
        "pack": [config.pack],
    }
    dump = digest_file(config.issues.dump) if config.issues else ""
    issues = name_folders(begin, {"issues": [config.issues, config.secrets, dump, benchmarks]}, out)
    folders = name_folders(begin, parts, out) | issues
    return folders | name_folders([], {"benchmarks": benchmarks}, out)
