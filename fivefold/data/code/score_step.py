"""Scores, tiers and copies as steps of datatrove.

Scores go into side files, once by rule and once with what the classifiers learned from the rule's
extremes; tiers and epochs are thresholds over those files, so that other thresholds ask no model
again. One task for each file of documents.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.artifact import atomic_write
from fivefold.data.code.backoff import (
    CodeScore,
    Labelled,
    choose_labels,
    load_backoff,
    mean_score,
    train_backoff,
)
from fivefold.data.code.config import CodeClassifierConfig, SamplingConfig, TierConfig
from fivefold.data.code.quality import TierEdges, rule_score, tier_edges, tier_epochs
from fivefold.data.code.sampling import copies, language_weights, tiered_sizes
from fivefold.data.curate.classify_step import score_file, score_or_trace, take_score
from fivefold.data.curate.step import JudgeStep
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, read_documents

_COLUMNS = ("id", "quality", "trace", "language", "characters")


class ScoreCode(PipelineStep):
    """Write the score of every file of documents: the rule's, or the mean with the classifiers'."""

    name = "score"
    type = "fivefold"

    def __init__(
        self,
        documents: Sequence[Path],
        out: Path,
        page_seconds: float,
        classifiers: tuple[Path, int] | None = None,
    ) -> None:
        """Take one file for each task; `classifiers`: their folder, and characters they read."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.out = str(out)
        self.page_seconds = page_seconds
        self.classifiers = classifiers

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Score the file number `rank`; nothing goes on from here."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        learned = load_backoff(*self.classifiers) if self.classifiers else None
        rows = []
        for document in read_documents(Path(self.documents[rank])):
            score, trace = score_or_trace(partial(_score, document, learned), self.page_seconds)
            facts = document.lang, len(document.text)
            rows.append((document.id, np.float32(score), trace, *facts))
        columns = {name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)}
        text = arrow.string()
        types = (text, arrow.float32(), text, text, arrow.int64())
        table = arrow.table(columns, schema=arrow.schema(list(zip(_COLUMNS, types, strict=True))))
        with atomic_write(score_file(Path(self.out), Path(self.documents[rank]))) as file:
            parquet.write_table(table, file, compression="zstd")
        yield from ()


def _score(document: Document, learned: CodeScore | None) -> float:
    """Return the rule's score of a file, or the mean with the classifiers'."""
    score = rule_score(document.text, document.lang)
    return mean_score(score, learned(document.text, document.lang)) if learned else score


class LearnQuality(PipelineStep):
    """Train the classifiers on the files that the rule finds best and worst; one task."""

    name = "learn"
    type = "fivefold"

    def __init__(
        self, documents: Sequence[Path], scores: Path, out: Path, config: CodeClassifierConfig
    ) -> None:
        """Take all files of documents and the folder of the rule's scores."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.scores = str(scores)
        self.out = str(out)
        self.config = config

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the models; nothing goes on from here."""
        ranked: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        for name, language, score, _ in read_rows(map(Path, self.documents), Path(self.scores)):
            if score >= 0:
                ranked[language].append((score, name))
        labels = choose_labels(ranked, self.config)
        train_backoff(self._labelled(labels), Path(self.out), self.config)
        yield from ()

    def _labelled(self, labels: Mapping[str, bool]) -> Iterator[Labelled]:
        for file in self.documents:
            for one in read_documents(Path(file)):
                if one.id in labels:
                    yield Labelled(one.id, one.text, one.lang, labels[one.id])


def read_rows(documents: Iterable[Path], scores: Path) -> Iterator[tuple[str, str, float, int]]:
    """Yield id, language, score and characters of every file, in order."""
    import pyarrow.parquet as parquet

    for file in documents:
        table = parquet.read_table(score_file(scores, file)).to_pydict()
        columns = (table[name] for name in ("id", "language", "quality", "characters"))
        yield from zip(*columns, strict=True)


@dataclass(frozen=True)
class Plan:
    """What scores and sizes of all files decide."""

    edges: Mapping[str, TierEdges]
    """Tiers by language."""
    epochs: Mapping[str, float]
    """Times that a tier is seen before temperature."""
    weights: Mapping[str, float]
    """By language: what temperature makes of it."""
    sampling: SamplingConfig

    def to_json(self) -> dict:
        """Return plain values."""
        # JSON has no infinity: a language that is not ranked has no edges.
        edges = {
            name: [float(one.mid), float(one.high)] if np.isfinite(one.mid) else None
            for name, one in self.edges.items()
        }
        return {"edges": edges, "epochs": dict(self.epochs), "weights": dict(self.weights)}


def make_plan(
    documents: Sequence[Path], scores: Path, tiers: TierConfig, sampling: SamplingConfig
) -> Plan:
    """Return tiers and epochs from all scores; independent of their order."""
    rows = [row for row in read_rows(documents, scores) if row[2] >= 0]
    edges = tier_edges(((language, score) for _, language, score, _ in rows), tiers)
    epochs = tier_epochs(tiers)
    sizes = tiered_sizes(
        ((language, edges[language].tier(score), size) for _, language, score, size in rows), epochs
    )
    return Plan(edges, epochs, language_weights(sizes, sampling), sampling)


class AssignTiers(JudgeStep):
    """Name each file's tier; drop those whose tier is not seen."""

    def __init__(self, plan: Plan, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("tiers", accounts, page_seconds)
        self.plan = plan

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        score = take_score(page)
        tier = self.plan.edges[page.metadata["lang"]].tier(score)
        page.metadata["meta"] |= {"quality": round(score, 4), "tier": tier}
        return Verdict(page.text, "" if self.plan.epochs[tier] else f"tier.{tier}")


class DrawCopies(JudgeStep):
    """Decide how often each file is seen; drop those that are not."""

    def __init__(self, plan: Plan, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("sampling", accounts, page_seconds)
        self.plan = plan

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        plan, meta = self.plan, page.metadata["meta"]
        epochs = plan.epochs[meta["tier"]] * plan.weights[page.metadata["lang"]]
        meta["copies"] = copies(page.id, epochs, plan.sampling)
        return Verdict(page.text, "" if meta["copies"] else "sampling.not_drawn")
