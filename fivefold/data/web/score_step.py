"""Scoring as datatrove steps: one Parquet file of scores for each file of documents.

`ScoreQuality` asks fastText, `ScoreVectors` the classifiers over vectors, of the documents that are
embedded. A document on which a classifier fails gets a score below 0 and the trace, with which it
is quarantined where tiers are applied. A fault of an endpoint or a factory ends the run instead: it
is no fault of a page.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from fivefold.artifact import atomic_write
from fivefold.data.curate.account import trace_of
from fivefold.data.curate.classifier import load_classifier
from fivefold.data.curate.classify_step import (
    FAILED,
    ScoreDocuments,
    read_scores,
    score_file,
)
from fivefold.data.curate.config import QualityClassifierConfig
from fivefold.data.curate.step import is_of_the_run, time_limit
from fivefold.data.document import Document, read_documents
from fivefold.data.web.classifier import VectorClassifier
from fivefold.data.web.config import Kind
from fivefold.data.web.sample import HALVES, Sample, half_folder, half_of

_BATCH = 16
_SCORES = ("embedding", "knowledge", "knowledge_probability")
COLUMNS = ("id", "bytes", "site", *_SCORES, "trace")
"""Columns of the side file; scores are null where a document is not embedded."""
_Row = tuple[float | None, float | None, float | None, str]
"""Scores, and the trace of where a classifier failed; empty where none did."""
_NOT_EMBEDDED: _Row = (None, None, None, "")


Models = dict[Kind, VectorClassifier]


class ScoreQuality(ScoreDocuments):
    """Score every document by the model that did not learn from its half."""

    def __init__(
        self, documents: Sequence[Path], models: Path, out: Path, page_seconds: float
    ) -> None:
        """Take what `LearnQuality` wrote into `models`."""
        config = QualityClassifierConfig(model=str(models))
        super().__init__(documents, config, out, page_seconds)

    def prepare(self) -> Callable[[Document], float]:
        """Open both models."""
        scores = [
            load_classifier(str(half_folder(self.config.model, half) / "model.bin"), "high")
            for half in range(HALVES)
        ]
        return lambda document: scores[1 - half_of(document.id)](document.text)


class ScoreVectors(PipelineStep):
    """Write what the classifiers over vectors say of the documents of a file."""

    name = "assess"
    type = "fivefold"

    def __init__(
        self,
        documents: Sequence[Path],
        quality: Path,
        models: dict[Kind, str],
        most: int | None,
        out: Path,
        page_seconds: float,
    ) -> None:
        """Take one file for each task, the folder of fastText scores, and directories of models."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.quality = str(quality)
        self.models = models
        self.most = most
        self.out = str(out)
        self.page_seconds = page_seconds

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Score the file number `rank`; nothing goes on from here."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        files = [score_file(Path(self.quality), Path(file)) for file in self.documents]
        sample = Sample((name for file in files for name in read_scores(file)[0]), self.most)
        models: Models = {k: VectorClassifier(place, k) for k, place in self.models.items()}
        rows: list[tuple] = []
        for batch in _batches(read_documents(Path(self.documents[rank]))):
            wanted = [one for one in batch if one.id in sample]
            scores = dict(zip((one.id for one in wanted), self._score(wanted, models), strict=True))
            for one in batch:
                facts = one.id, len(one.text.encode()), site_of(one)
                rows.append((*facts, *scores.get(one.id, _NOT_EMBEDDED)))
        text, number = arrow.string(), arrow.float64()
        types = (text, arrow.int64(), text, *[number] * len(_SCORES), text)
        schema = arrow.schema(list(zip(COLUMNS, types, strict=True)))
        columns = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}
        with atomic_write(score_file(Path(self.out), Path(self.documents[rank]))) as partial:
            parquet.write_table(arrow.table(columns, schema=schema), partial, compression="zstd")
        yield from ()

    def _score(self, documents: list[Document], models: Models) -> list[_Row]:
        """Return a row for each document; FAILED and the trace where a model failed on it."""
        if not documents:
            return []
        try:
            with time_limit(self.page_seconds * len(documents)):
                found = _ask(documents, models).tolist()
        # One of them is to blame: it alone is marked, for `SelectTiers` to quarantine.
        except Exception as error:
            if is_of_the_run(error):
                raise
            if len(documents) == 1:
                return [(FAILED, FAILED, FAILED, trace_of(error))]
            return [row for one in documents for row in self._score([one], models)]
        return [(*scores, "") for scores in found]


def _ask(documents: list[Document], models: Models) -> NDArray[np.float64]:
    """Return scores rounded to six decimals; NaN of a classifier that there is none of.

    Sums of another matrix library differ in the last bits, which must not decide about a tier.
    """
    found = np.full((len(documents), len(_SCORES)), np.nan)
    quality, knowledge = models.get("embedding"), models.get("world_knowledge")
    vectors = None
    if quality:
        vectors = quality.vectors(documents)
        found[:, 0] = quality.score(documents, vectors).score
    if knowledge:
        # A model is asked once for both: it is what all of the time goes into.
        is_shared = quality is not None and knowledge.shares_vectors(quality)
        scores = knowledge.score(documents, vectors if is_shared else None)
        found[:, 1], found[:, 2] = scores.score, scores.probability
    assert not np.isnan(found[:, : 1 if "embedding" in models else 0]).any(), "a vector of NaN"
    return np.round(found, 6).astype(np.float64)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def site_of(document: Document) -> str:
    """Return the host of a document's address; empty where there is none."""
    try:
        return urlsplit(document.url).hostname or ""
    except ValueError:
        return ""
