"""Scoring and selecting as datatrove steps: scores in side files, then a threshold over them.

One task for each file of documents. A score is written once, as float32 beside the document's id
in a Parquet file of the same name and order; another threshold reads the scores again and asks no
model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from fivefold.artifact import atomic_write
from fivefold.data.curate.classifier import load_classifier
from fivefold.data.curate.config import QualityClassifierConfig
from fivefold.data.curate.step import JudgeStep, document_to_page, time_limit
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, read_documents
from fivefold.errors import CorruptFileError

FAILED = -1.0
"""Score of a document on which the model failed; no probability is below 0."""


def score_file(folder: Path, documents: Path) -> Path:
    """Return the file of scores beside a file of documents."""
    return folder / f"{documents.name.split('.')[0]}.parquet"


def read_scores(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Return ids and scores in the order of the documents."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    return table["id"].to_pylist(), table["quality"].to_numpy()


class ScoreDocuments(PipelineStep):
    """Write the score of every document of a file."""

    name = "score"
    type = "fivefold"

    def __init__(
        self,
        documents: Sequence[Path],
        config: QualityClassifierConfig,
        out: Path,
        page_seconds: float,
    ) -> None:
        """Take one file for each task; write into `out`."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.config = config
        self.out = str(out)
        self.page_seconds = page_seconds

    def prepare(self) -> Callable[[Document], float]:
        """Return what scores the documents of one task; called once, in the worker."""
        score = load_classifier(self.config.model, self.config.label)
        return lambda document: score(document.text)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Score the file number `rank`; nothing goes on from here."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        score = self.prepare()
        ids, scores = [], []
        for document in read_documents(Path(self.documents[rank])):
            ids.append(document.id)
            try:
                with time_limit(self.page_seconds):
                    scores.append(score(document))
            # `DropLowScores` quarantines it, so that the document is in the accounts.
            except Exception:  # noqa: BLE001
                scores.append(FAILED)
        columns = {"id": arrow.array(ids, arrow.string()), "quality": np.array(scores, np.float32)}
        with atomic_write(score_file(Path(self.out), Path(self.documents[rank]))) as partial:
            parquet.write_table(arrow.table(columns), partial, compression="zstd")
        yield from ()


class ReadScored(PipelineStep):
    """Read a file of documents with the scores beside it."""

    name = "scored"
    type = "reader"

    def __init__(self, documents: Sequence[Path], scores: Path) -> None:
        """Take one file for each task, and the folder of scores."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.scores = str(scores)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the documents of the file number `rank`.

        Raises:
            CorruptFileError: scores and documents are not of the same run.
        """
        path = Path(self.documents[rank])
        ids, scores = read_scores(score_file(Path(self.scores), path))
        for name, score, document in zip(ids, scores.tolist(), read_documents(path), strict=True):
            if name != document.id:
                raise CorruptFileError(
                    expected=f"the score of document {document.id} of `{path}`",
                    found=f"that of {name}",
                    fix=f"Remove `{self.scores}` and run again",
                )
            page = document_to_page(document)
            page.metadata["score"] = score
            yield page


class DropLowScores(JudgeStep):
    """Drop the documents below a score."""

    def __init__(self, threshold: float, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("quality", accounts, page_seconds)
        self.threshold = threshold

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        score = page.metadata.pop("score")
        assert score >= 0, "the classifier failed on this document"
        page.metadata["meta"]["quality"] = round(score, 4)
        return Verdict(page.text, "" if score >= self.threshold else "classifier.low_score")
