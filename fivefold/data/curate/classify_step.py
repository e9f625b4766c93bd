"""Scoring and selecting as datatrove steps: scores in side files, then a threshold over them.

One task for each file of documents. A score is written once, as float32 beside the document's id
in a Parquet file of the same name and order; another threshold reads the scores again and asks no
model. Where the model failed on a document its trace lies there instead, and the document is
quarantined with it as soon as the score is needed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from fivefold.artifact import atomic_write
from fivefold.data.curate.account import EarlierError, trace_of
from fivefold.data.curate.classifier import load_classifier
from fivefold.data.curate.config import QualityClassifierConfig
from fivefold.data.curate.step import JudgeStep, document_to_page, is_of_the_run, time_limit
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, read_documents
from fivefold.errors import CorruptFileError

FAILED = -1.0
"""Score of a document on which the model failed; no probability is below 0."""


def score_or_trace(score: Callable[[], float], page_seconds: float) -> tuple[float, str]:
    """Return a score and no trace, or FAILED and the trace of where the model failed.

    Raises:
        FivefoldError: as the model does, where no document is to blame.
    """
    try:
        with time_limit(page_seconds):
            value = score()
            assert value == value, "the model gave no number"
    # Whoever needs the score quarantines the document, so that it is in the accounts.
    except Exception as error:
        if is_of_the_run(error):
            raise
        return FAILED, trace_of(error)
    return value, ""


def take_score(page: Page) -> float:
    """Take off a page the score that `ReadScored` gave it.

    Raises:
        EarlierError: the model failed on it.
    """
    score, trace = page.metadata.pop("score"), page.metadata.pop("trace")
    if trace:
        raise EarlierError(trace)
    return score


def score_file(folder: Path, documents: Path) -> Path:
    """Return the file of scores beside a file of documents."""
    return folder / f"{documents.name.split('.')[0]}.parquet"


def read_scores(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Return ids and scores in the order of the documents."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    return table["id"].to_pylist(), table["quality"].to_numpy()


def read_traces(path: Path) -> list[str]:
    """Return where the model failed on each document; empty where it did not."""
    import pyarrow.parquet as parquet

    return parquet.read_table(path, columns=["trace"])["trace"].to_pylist()


def has_traces(folder: Path) -> bool:
    """Return whether all files of scores in a folder tell of failures; those of early runs do not.

    True of a folder that is empty, or not there.
    """
    import pyarrow.parquet as parquet

    return all("trace" in parquet.read_schema(file).names for file in folder.glob("*.parquet"))


def holds_failures(folder: Path) -> bool:
    """Return whether a model failed on a document of a folder of scores."""
    return has_traces(folder) and any(any(read_traces(file)) for file in folder.glob("*.parquet"))


def write_scores(path: Path, rows: Sequence[tuple[str, float, str]]) -> None:
    """Write id, score and trace of each document."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    columns = {
        "id": arrow.array([name for name, _, _ in rows], arrow.string()),
        "quality": np.array([score for _, score, _ in rows], np.float32),
        "trace": arrow.array([trace for _, _, trace in rows], arrow.string()),
    }
    with atomic_write(path) as file:
        parquet.write_table(arrow.table(columns), file, compression="zstd")


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
        score, file = self.prepare(), Path(self.documents[rank])
        rows = [
            (one.id, *score_or_trace(partial(score, one), self.page_seconds))
            for one in read_documents(file)
        ]
        write_scores(score_file(Path(self.out), file), rows)
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
        side = score_file(Path(self.scores), path)
        ids, scores = read_scores(side)
        rows = zip(ids, scores.tolist(), read_traces(side), read_documents(path), strict=True)
        for name, score, trace, document in rows:
            if name != document.id:
                raise CorruptFileError(
                    expected=f"the score of document {document.id} of `{path}`",
                    found=f"that of {name}",
                    fix=f"Remove `{self.scores}` and run again",
                )
            page = document_to_page(document)
            page.metadata |= {"score": score, "trace": trace}
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
        score = take_score(page)
        page.metadata["meta"]["quality"] = round(score, 4)
        return Verdict(page.text, "" if score >= self.threshold else "classifier.low_score")
