"""Scores and tiers as steps of datatrove: labels of a sample, a head that learns, marks for all.

`LabelParts` asks the scorer about the parts of a sample of documents; `LearnHead` (one task) fits
the small scorer and measures it on other documents; `ScoreMaths` gives every document its score and
writes those of its parts beside it, so that a document can be cut to its best part later;
`AssignTiers` applies thresholds over all scores. A part on which the scorer fails has NaN, is
counted, and is nobody's 0; a document without any mark is quarantined.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from fivefold.artifact import atomic_write, read_json, write_json
from fivefold.data.curate.account import trace_of
from fivefold.data.curate.classifier import is_heldout, score_threshold
from fivefold.data.curate.classify_step import (
    read_scores,
    score_file,
    take_score,
    write_scores,
)
from fivefold.data.curate.step import JudgeStep, is_of_the_run, time_limit
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, read_documents
from fivefold.data.long.scorer import Scorer
from fivefold.data.maths.chunk import Part, join_parts, score_parts
from fivefold.data.maths.config import ChunkConfig, DistilConfig, ScorerConfig, SelectConfig
from fivefold.data.maths.head import fit_head, measure_agreement, read_head, write_head
from fivefold.data.maths.scorer import open_scorer
from fivefold.errors import FivefoldError

logger = logging.getLogger(__name__)

HEAD, AGREEMENT = "head.npz", "agreement.json"
HIGH, MID = "high", "mid"


class ScoringError(FivefoldError, RuntimeError):
    """The scorer failed on too many parts."""


class LabelParts(PipelineStep):
    """Write the scorer's marks of the parts of some documents."""

    name = "label"
    type = "fivefold"

    def __init__(
        self,
        documents: Sequence[Path],
        config: ScorerConfig,
        chunks: ChunkConfig,
        share: float,
        out: Path,
        page_seconds: float,
    ) -> None:
        """Take one file for each task and the share of documents to label, by their ids' hash."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.config, self.chunks = config, chunks
        self.share = share
        self.page_seconds = page_seconds
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Label the file number `rank`; nothing goes on from here."""
        scorer, file = open_scorer(self.config), Path(self.documents[rank])
        rows = [
            (document.id, part)
            for document in read_documents(file)
            if is_labelled(document.id, self.share)
            for part in mark_parts(document, scorer, self.chunks, self.page_seconds)[0]
        ]
        _write_parts(score_file(Path(self.out), file), rows)
        yield from ()


def is_labelled(document_id: str, share: float) -> bool:
    """Return whether a document is one of the sample, by the hash of its id."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), seed=13) < share * 2**64


def mark_parts(
    document: Document, scorer: Scorer, config: ChunkConfig, page_seconds: float
) -> tuple[list[Part], str]:
    """Return the scored parts of a document, and why none of them has a mark.

    One part without a mark where the scorer broke; no reason where there is a mark.

    Raises:
        FivefoldError: as the scorer does, where no document is to blame.
    """
    title = str(document.meta.get("title") or "")
    try:
        with time_limit(page_seconds):
            parts = score_parts(document.text, title, scorer, config)
    # One document does not stop the others; it is counted among the failures.
    except Exception as error:
        if is_of_the_run(error):
            raise
        logger.warning("no mark for document %s: %s", document.id, error)
        return [Part(0, len(document.text))], trace_of(error)
    is_marked = any(part.score == part.score for part in parts)
    return parts, "" if is_marked else f"{len(parts)} parts, and the scorer gave none a mark"


def _write_parts(path: Path, rows: Sequence[tuple[str, Part]]) -> None:
    """Write id, begin, end and score of each part."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    columns = {
        "id": arrow.array([name for name, _ in rows], arrow.string()),
        "begin": arrow.array([part.begin for _, part in rows], arrow.int64()),
        "end": arrow.array([part.end for _, part in rows], arrow.int64()),
        "score": np.array([part.score for _, part in rows], np.float64),
    }
    with atomic_write(path) as partial:
        parquet.write_table(arrow.table(columns), partial, compression="zstd")


def _read_parts(path: Path) -> Iterator[tuple[str, Part]]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    columns = (table[name].to_pylist() for name in ("id", "begin", "end", "score"))
    for name, begin, end, score in zip(*columns, strict=True):
        yield name, Part(begin, end, score)


def check_failures(files: Sequence[Path], max_failed: float) -> None:
    """Raise unless the scorer gave nearly all parts a mark.

    Raises:
        ScoringError: it failed on more than `max_failed` of them.
    """
    parts = [part for file in files for _, part in _read_parts(file)]
    failed = sum(math.isnan(part.score) for part in parts)
    if failed > max_failed * len(parts):
        raise ScoringError(
            expected=f"at most {max_failed:.1%} of {len(parts):,} parts without a mark",
            found=f"{failed:,}: no answer, or none of the form that was asked for",
            fix="Look at the server or the model, then run again; or raise `max_failed`",
        )


class LearnHead(PipelineStep):
    """Fit the small scorer to the labels and measure how well it follows them; one task."""

    name = "learn"
    type = "fivefold"

    def __init__(
        self, documents: Sequence[Path], labels: Path, config: DistilConfig, out: Path
    ) -> None:
        """Take all files of documents and the folder of labels."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.labels = str(labels)
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write `head.npz` and `agreement.json`; nothing goes on from here.

        With too few labels there is no head, and `agreement.json` says so.
        """
        train, heldout, failed, documents = self._texts()
        out = Path(self.out)
        if documents < self.config.min_labels or not train or not heldout:
            write_json(out / AGREEMENT, {"learned": False, "documents": documents})
            return
        marks = np.array([mark for _, mark in train])
        texts = [text for text, _ in train]
        head = fit_head(texts, marks, self.config.dimensions, self.config.ridge)
        scores = head.score([text for text, _ in heldout])
        found = measure_agreement(
            np.array([mark for _, mark in heldout]), scores, len(train), failed
        )
        write_head(head, out / HEAD)
        facts = {"learned": True, "documents": documents, **found.to_json()}
        # JSON has no NaN: a teacher that gives all the same mark has no ranks.
        clean = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in facts.items()}
        write_json(out / AGREEMENT, clean)
        yield from ()

    def _texts(self) -> tuple[list[tuple[str, float]], list[tuple[str, float]], int, int]:
        """Return (text, mark) of parts to learn from and to measure on, failures, documents."""
        train: list[tuple[str, float]] = []
        heldout: list[tuple[str, float]] = []
        failed, known = 0, set()
        for file in map(Path, self.documents):
            parts: dict[str, list[Part]] = {}
            for name, part in _read_parts(score_file(Path(self.labels), file)):
                parts.setdefault(name, []).append(part)
            for document in read_documents(file):
                for part in parts.get(document.id, ()):
                    if math.isnan(part.score):
                        failed += 1
                        continue
                    known.add(document.id)
                    is_other = is_heldout(document.id, self.config.heldout_share)
                    text = document.text[part.begin : part.end]
                    (heldout if is_other else train).append((text, part.score))
        return train, heldout, failed, len(known)


class ScoreMaths(PipelineStep):
    """Write the score of every document of a file, and beside it those of its parts."""

    name = "score"
    type = "fivefold"

    def __init__(
        self,
        documents: Sequence[Path],
        config: ScorerConfig,
        learned: Path | None,
        chunks: ChunkConfig,
        out: Path,
        page_seconds: float,
    ) -> None:
        """Score with the head in `learned` where there is one, else with what `config` names."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.config, self.chunks = config, chunks
        self.learned = str(learned) if learned else ""
        self.page_seconds = page_seconds
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Score the file number `rank`; nothing goes on from here."""
        scorer, file = self._open(), Path(self.documents[rank])
        rows: list[tuple[str, Part]] = []
        scores: list[tuple[str, float, str]] = []
        for document in read_documents(file):
            parts, trace = mark_parts(document, scorer, self.chunks, self.page_seconds)
            rows += [(document.id, part) for part in parts]
            scores.append((document.id, join_parts(parts, self.chunks), trace))
        _write_parts(score_file(Path(self.out) / "parts", file), rows)
        write_scores(score_file(Path(self.out), file), scores)
        yield from ()

    def _open(self) -> Scorer:
        if self.learned and (read_json(Path(self.learned) / AGREEMENT) or {}).get("learned"):
            return read_head(Path(self.learned) / HEAD)
        return open_scorer(self.config)


@dataclass(frozen=True)
class Edges:
    """Least scores of the two tiers that stay."""

    mid: float
    high: float

    def tier(self, score: float) -> str:
        """Return the tier of a score; empty below both."""
        return HIGH if score >= self.high else MID if score >= self.mid else ""


def read_all_scores(documents: Sequence[Path], folder: Path) -> NDArray[np.float32]:
    """Return the scores of all documents; NaN where the scorer failed."""
    parts = [read_scores(score_file(folder, file))[1] for file in documents]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def tier_edges(scores: NDArray[np.float32], config: SelectConfig) -> Edges:
    """Return the edges over all scores; documents that tie with the last one of a tier join it."""
    known = scores[~np.isnan(scores)]
    mid, high = (
        score_threshold(known, share, None) for share in (config.keep_share, config.high_share)
    )
    if config.min_score is not None:
        mid = max(mid, config.min_score)
    return Edges(mid, max(high, mid))


class AssignTiers(JudgeStep):
    """Name each document's tier and epochs; drop those in none."""

    def __init__(
        self, edges: Edges, config: SelectConfig, accounts: Path, page_seconds: float
    ) -> None:
        """See `JudgeStep`."""
        super().__init__("tiers", accounts, page_seconds)
        self.edges = edges
        self.epochs = {HIGH: config.high_epochs, MID: config.mid_epochs}

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        score = take_score(page)
        tier = self.edges.tier(score)
        if not tier:
            return Verdict(page.text, "tier.low_score")
        meta = {"quality": round(score, 4), "tier": tier, "epochs": float(self.epochs[tier])}
        page.metadata["meta"] |= meta
        return Verdict(page.text)


class CountTiers(PipelineStep):
    """Count the documents and bytes of each tier that pass."""

    name = "count_tiers"
    type = "fivefold"

    def __init__(self, out: Path) -> None:
        """Write `OUT/TASK.json`."""
        super().__init__()
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield everything as it is."""
        counts: dict[str, dict[str, Any]] = {}
        for page in data or ():
            meta = page.metadata["meta"]
            tier = counts.setdefault(
                meta["tier"], {"documents": 0, "bytes": 0, "epochs": meta["epochs"]}
            )
            tier["documents"] += 1
            tier["bytes"] += len(page.text.encode("utf-8", "replace"))
            yield page
        write_json(Path(self.out) / f"{rank:05d}.json", counts)


def read_tiers(folder: Path, tasks: int) -> Mapping[str, dict[str, Any]]:
    """Return {tier: {documents, bytes, epochs}} over all tasks, the best tier first."""
    whole: dict[str, dict[str, Any]] = {}
    for task in range(tasks):
        for name, counts in (read_json(folder / f"{task:05d}.json") or {}).items():
            tier = whole.setdefault(name, {"documents": 0, "bytes": 0, "epochs": counts["epochs"]})
            tier["documents"] += counts["documents"]
            tier["bytes"] += counts["bytes"]
    return {name: whole[name] for name in (HIGH, MID) if name in whole}
