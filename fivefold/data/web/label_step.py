"""Marks of world knowledge as a datatrove step: one Parquet file beside each file of documents.

A stage of its own, for a model behind an endpoint is slow: what was marked is not asked again.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from fivefold.artifact import atomic_write
from fivefold.data.curate.classify_step import read_scores, score_file
from fivefold.data.curate.step import is_of_the_run, time_limit
from fivefold.data.document import Document, read_documents
from fivefold.data.long.scorer import Scorer
from fivefold.data.maths.score_step import ScoringError
from fivefold.data.web.config import WebConfig
from fivefold.data.web.knowledge_label import excerpt, open_labeller
from fivefold.data.web.quality import read_quality
from fivefold.data.web.sample import Sample

logger = logging.getLogger(__name__)


class LabelKnowledge(PipelineStep):
    """Mark a sample of the pages that may be rescued."""

    name = "label"
    type = "fivefold"

    def __init__(
        self, documents: Sequence[Path], scores: Path, config: WebConfig, out: Path
    ) -> None:
        """Take one file for each task and the fastText scores of all; write into `out`."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.scores = str(scores)
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Mark the file number `rank`; nothing goes on from here.

        Raises:
            RefusedError, MissingFileError: as the endpoint does.
        """
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        assert self.config.knowledge, "nothing is labelled without it"
        label, file = self.config.knowledge.label, Path(self.documents[rank])
        wanted = self._wanted()
        chosen = [one for one in read_documents(file) if one.id in wanted]
        marks = self._mark(chosen, open_labeller(label.scorer))
        columns = {
            "id": arrow.array([one.id for one in chosen], arrow.string()),
            "quality": marks.astype(np.float32),
        }
        with atomic_write(score_file(Path(self.out), file)) as partial:
            parquet.write_table(arrow.table(columns), partial, compression="zstd")
        yield from ()

    def _mark(self, documents: Sequence[Document], labeller: Scorer) -> NDArray[np.float64]:
        """Return a mark for each document; NaN where the labeller failed on it."""
        assert self.config.knowledge, "nothing is labelled without it"
        label = self.config.knowledge.label
        if label.scorer.kind == "endpoint":
            # It keeps its own time, and asks about many texts at once.
            return labeller.score([excerpt(one.text, label.max_characters) for one in documents])
        marks = np.full(len(documents), np.nan)
        for place, one in enumerate(documents):
            try:
                with time_limit(self.config.page_seconds):
                    marks[place] = labeller.score([excerpt(one.text, label.max_characters)])[0]
            # One document does not stop the others; `read_marks` counts the failures.
            except Exception as error:
                if is_of_the_run(error):
                    raise
                logger.warning("no mark for document %s: %s", one.id, error)
        return marks

    def _wanted(self) -> set[str]:
        """Return the ids of the pages to mark, over all files."""
        assert self.config.knowledge, "nothing is labelled without it"
        label, files = self.config.knowledge.label, [Path(file) for file in self.documents]
        if not label.max_documents:
            return set()
        quality = read_quality(files, Path(self.scores), self.config)
        low, high = label.percentiles
        is_able = (quality.percentiles >= low) & (quality.percentiles < high)
        embedded = Sample(quality.ids, self.config.most_embedded)
        able = [
            name
            for name, yes in zip(quality.ids, is_able.tolist(), strict=True)
            if yes and name in embedded
        ]
        sample = Sample(able, label.max_documents)
        return {name for name in able if name in sample}


def read_marks(documents: Sequence[Path], folder: Path, max_failed: float) -> Mapping[str, float]:
    """Return the marks of all files by document.

    Raises:
        ScoringError: more than `max_failed` of the pages have none.
    """
    marks: dict[str, float] = {}
    for file in documents:
        ids, values = read_scores(score_file(folder, file))
        marks.update(zip(ids, values.tolist(), strict=True))
    told = {name: mark for name, mark in marks.items() if mark == mark}
    failed = len(marks) - len(told)
    if failed > max_failed * len(marks):
        raise ScoringError(
            expected=f"at most {max_failed:.1%} of {len(marks):,} pages without a mark",
            found=f"{failed:,}: no answer, or none of the form that was asked for",
            fix="Look at the server of `knowledge.label.scorer`, then run again",
        )
    return told
