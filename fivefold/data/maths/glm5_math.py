"""The pipeline of maths and science: pages in, documents in tiers out.

GLM-5 (section 2.2) names the parts and publishes no number; what is chosen here stands in `config`.
Order: address, extraction with formulas, language, the field; exact copies and near-duplicates;
templates, machine text, benchmark items; marks by the scorer on a sample, the small scorer that
learns from them, a score for everything; tiers and epochs.

Stages of datatrove's local executor, each a folder; see `run`. `benchmarks` and `detector` depend
on their own files alone, so that they are made again only when those change.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.artifact import digest_directory, read_json, write_json
from fivefold.config import Config
from fivefold.data.curate.benchmark_items import decontamination_parts
from fivefold.data.curate.dclm_baseline import Curated, digest_file, digest_shards
from fivefold.data.curate.run import CurationRun, name_folders, remove_results, write_results
from fivefold.data.curate.shard import Shard, find_shards
from fivefold.data.long.config import ModelSource
from fivefold.data.maths.calibration import Calibration, calibration_from_json
from fivefold.data.maths.config import MachineTextConfig, MathsConfig
from fivefold.errors import MissingFileError
from fivefold.stage import Track

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep

    from fivefold.data.curate.step import JudgeStep

logger = logging.getLogger(__name__)

_CHARACTERS_PER_FILE = 1 << 26


def run_glm5_math(
    shards: Sequence[Shard], config: MathsConfig, out: Path, track: Track | None = None
) -> Curated:
    """Curate `shards` into `out`; what lies there from before is used again.

    Writes `accounts.json`, `summary.json`, `tiers.json`, `agreement.json` and `detector.json` into
    `out`, and documents into the last stage's folder.

    Raises:
        MissingFileError: an input, a benchmark, a list or a model does not exist.
        CorruptFileError: an input is cut or altered.
        ConfigError: too little human text for the detector's threshold.
        ScoringError: the scorer failed too often.
        QuarantineError: steps failed on too many documents.
    """
    from fivefold.data.curate.summary import read_summary

    remove_results(out)
    run = _Run(shards, config, out, track)
    run.prepare()
    run.extract()
    run.filter()
    files = run.stages.deduplicate(config.minhash, None, _CHARACTERS_PER_FILE)
    files = run.refuse(files)
    run.score(files)
    documents = run.select(files)
    accounts = run.stages.accounts
    summary = read_summary(run.folders["select"] / "summary", len(files))
    write_results(out, accounts, summary)
    run.stages.check_accounts()
    run.report(out, len(files))
    return Curated(documents, accounts, summary, run.stages.empty_shards("extract"))


class _Run:
    """The stages one after the other."""

    def __init__(
        self, shards: Sequence[Shard], config: MathsConfig, out: Path, track: Track | None
    ) -> None:
        self.shards, self.config = shards, config
        own = config.machine_text
        self.human = find_shards(own.human, config.cache_dir) if own else []
        self.machine = find_shards(own.machine, config.cache_dir) if own and own.machine else []
        self.folders = maths_stage_folders(shards, self.human, self.machine, config, out)
        self.stages = CurationRun(self.folders, config, track)

    def prepare(self) -> None:
        """Make what depends on no page: first, so that its mistakes come before hours of work."""
        from fivefold.data.maths.step import FitDetector

        config, folders = self.config, self.folders
        if config.machine_text:
            parts = (self.human, self.machine, config.machine_text)
            self.stages.execute("detector", [FitDetector(*parts, folders["detector"])], 1)
        self.stages.index_benchmarks()

    def extract(self) -> None:
        """Read raw pages, refuse addresses, extract text with formulas."""
        from fivefold.data.curate.extract_step import ReadShards, WriteTask
        from fivefold.data.curate.step import FilterUrls
        from fivefold.data.maths.step import ExtractMaths

        config, folder = self.config, self.folders["extract"]
        accounts, seconds = folder / "accounts", config.page_seconds
        steps: list[JudgeStep] = [
            *([FilterUrls(config.url, accounts, seconds)] if config.url else []),
            ExtractMaths(config.extract, config.formulas, accounts, seconds),
        ]
        reader = ReadShards(self.shards, config.extract, folder / "reading", seconds)
        self.stages.execute("extract", [reader, *steps, WriteTask(folder / "documents")])
        self.stages.enter("extract", [step.name for step in steps])

    def filter(self) -> None:
        """Choose languages and the field, sort each task's documents."""
        from fivefold.data.curate.dedup_step import WriteSorted
        from fivefold.data.curate.step import FilterLanguages, ReadDocuments
        from fivefold.data.maths.step import AdmitMaths

        config, folder = self.config, self.folders["filter"]
        accounts, seconds = folder / "accounts", config.page_seconds
        steps: list[JudgeStep] = [
            *([FilterLanguages(config.language, accounts, seconds)] if config.language else []),
            *([AdmitMaths(config.admit, accounts, seconds)] if config.admit else []),
        ]
        reader = ReadDocuments(self.stages.task_files("extract"))
        self.stages.execute("filter", [reader, *steps, WriteSorted(folder / "documents")])
        self.stages.enter("filter", [step.name for step in steps])

    def refuse(self, files: list[Path]) -> list[Path]:
        """Drop templates, machine text and benchmark items; return the files of the rest."""
        from fivefold.data.curate.extract_step import WriteTask
        from fivefold.data.curate.step import ReadDocuments

        steps = [*self._templates(files), *self._machine_text()]
        steps += self.stages.benchmark_steps("refuse")
        folder = self.folders["refuse"]
        writer = WriteTask(folder / "documents")
        self.stages.execute("refuse", [ReadDocuments(files), *steps, writer], len(files))
        self.stages.enter("refuse", [step.name for step in steps], len(files))
        return sorted((folder / "documents").glob("*.jsonl.zst"))

    def _templates(self, files: list[Path]) -> list["JudgeStep"]:
        from fivefold.data.maths.step import DropTemplates, FindTemplates, OutlineDocuments

        config, folders = self.config.templates, self.folders
        if config is None:
            return []
        seconds = self.config.page_seconds
        outliner = OutlineDocuments(files, config, folders["outline"], seconds)
        self.stages.execute("outline", [outliner], len(files))
        finder = FindTemplates(folders["outline"], len(files), config, folders["templates"])
        self.stages.execute("templates", [finder], 1)
        accounts = folders["refuse"] / "accounts"
        return [DropTemplates(config, folders["templates"], accounts, seconds)]

    def _machine_text(self) -> list["JudgeStep"]:
        from fivefold.data.maths.step import DropMachineText

        config, accounts = self.config.machine_text, self.folders["refuse"] / "accounts"
        if config is None:
            return []
        detector, seconds = self.folders["detector"], self.config.page_seconds
        return [DropMachineText(config, detector, accounts, seconds)]

    def score(self, files: list[Path]) -> None:
        """Label a sample, learn from it, score everything."""
        from fivefold.data.maths.score_step import LabelParts, LearnHead, ScoreMaths

        config, folders, distil = self.config, self.folders, self.config.distil
        learned, seconds = None, config.page_seconds
        if distil:
            before = list(self.stages.accounts.values())[-1]
            share = min(1.0, distil.max_labels / max(1, before.documents_out))
            labels = folders["label"]
            labeller = LabelParts(files, config.scorer, config.chunks, share, labels, seconds)
            self.stages.execute("label", [labeller], len(files))
            self._check_marks("label", labels, files)
            learned = folders["learn"]
            self.stages.execute("learn", [LearnHead(files, labels, distil, learned)], 1)
        scorer = ScoreMaths(files, config.scorer, learned, config.chunks, folders["score"], seconds)
        self.stages.execute_scores("score", [scorer], len(files))
        self._check_marks("score", folders["score"] / "parts", files)

    def _check_marks(self, stage: str, folder: Path, files: list[Path]) -> None:
        from fivefold.data.curate.classify_step import score_file
        from fivefold.data.maths.score_step import ScoringError, check_failures

        try:
            check_failures([score_file(folder, file) for file in files], self.config.max_failed)
        except ScoringError:
            self.stages.forget(stage)
            raise

    def select(self, files: list[Path]) -> list[Path]:
        """Assign tiers; return the files of what stays."""
        from fivefold.data.curate.classify_step import ReadScored
        from fivefold.data.curate.extract_step import WriteTask
        from fivefold.data.curate.summary import Summarise
        from fivefold.data.maths.score_step import (
            AssignTiers,
            CountTiers,
            read_all_scores,
            tier_edges,
        )

        config, folder = self.config, self.folders["select"]
        edges = tier_edges(read_all_scores(files, self.folders["score"]), config.select)
        tiers = AssignTiers(edges, config.select, folder / "accounts", config.page_seconds)
        steps: list[PipelineStep] = [
            ReadScored(files, self.folders["score"]),
            tiers,
            CountTiers(folder / "tiers"),
            Summarise(folder / "summary"),
            WriteTask(folder / "documents"),
        ]
        self.stages.execute("select", steps, len(files))
        self.stages.enter("select", [tiers.name], len(files))
        return sorted((folder / "documents").glob("*.jsonl.zst"))

    def report(self, out: Path, files: int) -> None:
        """Write and tell what the scorer, the detector and the tiers came to."""
        from fivefold.data.maths.score_step import AGREEMENT, HEAD, read_tiers

        tiers = read_tiers(self.folders["select"] / "tiers", files)
        write_json(out / "tiers.json", tiers)
        for name, tier in tiers.items():
            logger.info(
                "tier %s: %s documents, %.2f MB, %g epochs",
                name,
                f"{tier['documents']:,}",
                tier["bytes"] / 1e6,
                tier["epochs"],
            )
        if self.config.distil:
            agreement = read_json(self.folders["learn"] / AGREEMENT) or {}
            write_json(out / AGREEMENT, agreement)
            _tell_agreement(agreement)
            head = self.folders["learn"] / HEAD
            if head.is_file():
                _copy(head, out / HEAD)
        if self.config.machine_text:
            detector = read_json(self.folders["detector"] / "detector.json") or {}
            write_json(out / "detector.json", detector)
            _tell_detector(calibration_from_json(detector["calibration"]), self.config.machine_text)


def _tell_detector(found: Calibration, config: MachineTextConfig) -> None:
    rates = ", ".join(f"{name} {rate}" for name, rate in found.sources.items())
    logger.info(
        "machine text: pieces of human text above the threshold, with %g%% confidence: %s; by "
        "source: %s",
        100 * config.confidence,
        found.pooled,
        rates,
    )
    if small := found.small_sources():
        logger.warning(
            "machine text: %s: fewer than %d pieces of human text, too few to bound %g%%; none of "
            "them is above the threshold, but of others like them more may be",
            ", ".join(small),
            found.needed,
            100 * config.false_positives,
        )


def _tell_agreement(agreement: dict) -> None:
    if not agreement.get("learned"):
        logger.warning(
            "%s labelled documents are too few to learn from: the scorer itself judges everything",
            agreement.get("documents", 0),
        )
        return
    logger.info(
        "the small scorer follows the scorer with Spearman %s and AUC %s on %s held-out parts; the "
        "scorer failed on %s",
        agreement["spearman"],
        agreement["auc"],
        f"{agreement['heldout']:,}",
        agreement["failed"],
    )


def _copy(file: Path, to: Path) -> None:
    from fivefold.artifact import atomic_write

    with atomic_write(to) as partial:
        partial.write_bytes(file.read_bytes())


def maths_stage_folders(
    shards: Sequence[Shard],
    human: Sequence[Shard],
    machine: Sequence[Shard],
    config: MathsConfig,
    out: Path,
) -> dict[str, Path]:
    """Return each stage's folder, named by what its content depends on.

    Raises:
        MissingFileError: an input, a benchmark, a list or a model does not exist.
    """
    own = config.machine_text
    detector: list[Config | object] = [
        own and own.model_copy(update={"human": (), "machine": ()}),
        digest_shards(human, 0),
        digest_shards(machine, 0),
        own and _digest_model(own.model),
    ]
    benchmarks = decontamination_parts(config.benchmarks)
    scorer = config.scorer
    models = [_digest_model(one) for one in (scorer.model, scorer.general)]
    domains = config.url and digest_file(config.url.domain_file)
    languages = config.language and digest_file(config.language.model)
    chain: dict[str, Sequence[Config | object]] = {
        "extract": [config.url, config.extract, config.formulas, domains],
        "filter": [config.language, config.admit, languages],
        "sign": [config.minhash],
        "choose": [],
        "dedup": [],
        "outline": [config.templates],
        "templates": [],
        "refuse": [*detector, benchmarks],
        "label": [
            scorer.model_copy(update={"head": ""}),
            config.chunks,
            config.distil and config.distil.max_labels,
            digest_file(scorer.head),
            models,
        ],
        "learn": [config.distil],
        "score": [],
        "select": [config.select],
    }
    folders = name_folders(digest_shards(shards, config.tasks), chain, out)
    folders |= name_folders([], {"detector": detector}, out)
    folders |= name_folders([], {"benchmarks": benchmarks}, out)
    return folders


def _digest_model(source: ModelSource) -> list[str]:
    if not source.checkpoint:
        return []
    folder = Path(source.checkpoint).expanduser()
    if not folder.is_dir():
        raise MissingFileError(
            expected=f"the directory of a model at `{source.checkpoint}`",
            found="nothing",
            fix="Correct the `checkpoint`",
        )
    return [source.factory, digest_directory(folder)]
