"""Tiers as datatrove steps: decided over all scores, then applied to each file of documents.

`AssignTiers` (one task) writes a Parquet file of scores, percentiles and tiers beside each file of
documents, and `plan.json` with the quantiles that percentiles come from. `SelectTiers` drops tiers
that are not seen and writes `tier` and `epochs` into the documents' `meta`. That a document was
added or rescued counts as an edit of no length, so that `inspect` shows some.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from fivefold.artifact import atomic_write, write_json
from fivefold.data.curate.account import EarlierError
from fivefold.data.curate.classify_step import score_file
from fivefold.data.curate.step import JudgeStep, document_to_page
from fivefold.data.curate.verdict import Edit, Verdict
from fivefold.data.document import read_documents
from fivefold.data.web.calibrate import percentiles, quantiles_of
from fivefold.data.web.config import WebConfig
from fivefold.data.web.quality import Quality, read_quality, read_quantiles
from fivefold.data.web.tier import (
    ADDED,
    RESCUED,
    Choice,
    Scores,
    choose_tiers,
    overlap,
    tier_epochs,
    tier_sizes,
)
from fivefold.errors import CorruptFileError

_SHOWN_CHARACTERS = 240
_VECTOR_SCORES = ("embedding", "knowledge", "knowledge_probability")


class AssignTiers(PipelineStep):
    """Decide about all documents from all scores; one task."""

    name = "assign_tiers"
    type = "fivefold"

    def __init__(
        self,
        documents: Sequence[Path],
        quality: Path,
        vectors: Path,
        config: WebConfig,
        out: Path,
    ) -> None:
        """Take all files of documents and the folders of their scores; write into `out`."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.quality = str(quality)
        self.vectors = str(vectors)
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the decisions; nothing goes on from here."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        config, files = self.config, [Path(file) for file in self.documents]
        quality = read_quality(files, Path(self.quality), config)
        table = arrow.concat_tables(
            [parquet.read_table(score_file(Path(self.vectors), file)) for file in files]
        )
        if table["id"].to_pylist() != quality.ids:
            raise CorruptFileError(
                expected=f"scores of the same documents in `{self.quality}` and `{self.vectors}`",
                found="others",
                fix="Remove both folders and run again",
            )
        columns = {name: _numbers(table, name) for name in _VECTOR_SCORES}
        pairs = zip(quality.traces, table["trace"].to_pylist(), strict=True)
        traces = [first or second for first, second in pairs]
        is_whole = np.array([not trace for trace in traces], dtype=np.bool_)
        quantiles = {"quality": quality.quantiles}
        ranks = np.full(len(quality.ids), np.nan)
        known = is_whole & ~np.isnan(columns["embedding"])
        if known.any():
            quantiles["embedding"] = (
                read_quantiles(config.quantiles, "embedding")
                if config.quantiles
                else [quantiles_of(columns["embedding"][known])]
            )
            ranks[known] = percentiles(columns["embedding"][known], quantiles["embedding"][0])
        sizes = np.where(is_whole, table["bytes"].to_numpy(), 0)
        scores = Scores(
            ids=quality.ids,
            quality=np.where(is_whole, quality.percentiles, 0.0),
            embedding=ranks,
            knowledge=np.where(is_whole, columns["knowledge"], np.nan),
            knowledge_probability=np.where(is_whole, columns["knowledge_probability"], np.nan),
            size_bytes=sizes,
            sites=table["site"].to_pylist(),
        )
        choice = choose_tiers(scores, config.tiers, config.embedding, config.knowledge)
        choice = _without_failed(choice, is_whole)
        self._write(quality, columns, scores, choice, traces)
        self._write_plan(scores, choice, quantiles)
        yield from ()

    def _write(
        self,
        quality: Quality,
        columns: dict[str, NDArray[np.float64]],
        scores: Scores,
        choice: Choice,
        traces: list[str],
    ) -> None:
        """Write a file beside each file of documents."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        epochs = tier_epochs(self.config.tiers, self.config.knowledge)
        table = arrow.table(
            {
                "id": quality.ids,
                "quality": quality.scores,
                "quality_percentile": scores.quality,
                "embedding": columns["embedding"],
                "embedding_percentile": scores.embedding,
                "knowledge": columns["knowledge"],
                "knowledge_probability": columns["knowledge_probability"],
                "tier": choice.tiers,
                "epochs": [epochs.get(name, 0.0) for name in choice.tiers],
                "lifted_by": choice.lifted_by,
                "trace": traces,
            }
        )
        begin = 0
        for file in map(Path, self.documents):
            count = parquet.read_metadata(score_file(Path(self.quality), file)).num_rows
            with atomic_write(score_file(Path(self.out), file)) as partial:
                parquet.write_table(table.slice(begin, count), partial, compression="zstd")
            begin += count

    def _write_plan(
        self, scores: Scores, choice: Choice, quantiles: dict[str, list[NDArray[np.float64]]]
    ) -> None:
        config, top = self.config, self.config.tiers[0].min_percentile
        epochs = tier_epochs(config.tiers, config.knowledge)
        embedded = ~np.isnan(scores.embedding)
        first, second = (scores.quality >= top)[embedded], scores.embedding[embedded] >= top
        write_json(
            Path(self.out) / "plan.json",
            {
                "documents": len(scores.ids),
                "embedded": int(embedded.sum()),
                "chosen_by_fasttext": int((scores.quality >= top).sum()),
                "added_by_embedding": choice.lifted_by.count(ADDED),
                "rescued_by_knowledge": choice.lifted_by.count(RESCUED),
                "knowledge_threshold": choice.threshold,
                "overlap": round(overlap(first, second), 4),
                "tiers": tier_sizes(choice, scores.size_bytes, epochs),
                "quantiles": {
                    name: [one.tolist() for one in some] for name, some in quantiles.items()
                },
            },
        )


def _numbers(table: Any, name: str) -> NDArray[np.float64]:
    """Return a column with NaN in the place of null."""
    return table[name].to_numpy().astype(np.float64)


def _without_failed(choice: Choice, is_whole: NDArray[np.bool_]) -> Choice:
    """Return the choice with no tier for documents on which a classifier failed."""
    tiers = [name if yes else "" for name, yes in zip(choice.tiers, is_whole.tolist(), strict=True)]
    return Choice(tiers, choice.lifted_by, choice.threshold)


class ReadTiered(PipelineStep):
    """Read a file of documents with the decisions beside it."""

    name = "tiered"
    type = "reader"

    def __init__(self, documents: Sequence[Path], decisions: Path) -> None:
        """Take one file for each task, and the folder that `AssignTiers` wrote."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.decisions = str(decisions)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the documents of the file number `rank`.

        Raises:
            CorruptFileError: decisions and documents are not of the same run.
        """
        import pyarrow.parquet as parquet

        path = Path(self.documents[rank])
        rows = parquet.read_table(score_file(Path(self.decisions), path)).to_pylist()
        for row, document in zip(rows, read_documents(path), strict=True):
            if row["id"] != document.id:
                raise CorruptFileError(
                    expected=f"the tier of document {document.id} of `{path}`",
                    found=f"that of {row['id']}",
                    fix=f"Remove `{self.decisions}` and run again",
                )
            page = document_to_page(document)
            page.metadata["decision"] = row
            yield page


class SelectTiers(JudgeStep):
    """Drop the documents of tiers that are not seen; note tier and epochs of the others."""

    def __init__(self, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("tiers", accounts, page_seconds)

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        row = page.metadata.pop("decision")
        if row["trace"]:
            raise EarlierError(row["trace"])
        if not row["epochs"]:
            return Verdict(page.text, f"tier.{row['tier']}")
        page.metadata["meta"] |= {
            "quality": round(row["quality"], 4),
            "tier": row["tier"],
            "epochs": row["epochs"],
        }
        if not row["lifted_by"]:
            return Verdict(page.text)
        shown = f"{_describe(row)}: {page.text[:_SHOWN_CHARACTERS]}"
        return Verdict(page.text, edits=(Edit(f"tier.{row['lifted_by']}", 0, 0, shown),))


def _describe(row: dict[str, Any]) -> str:
    """Return why a document was lifted."""
    if row["lifted_by"] == ADDED:
        return (
            f"percentile {100 * row['quality_percentile']:.1f} with fastText, "
            f"{100 * row['embedding_percentile']:.1f} with vectors"
        )
    return (
        f"world knowledge {row['knowledge_probability']:.2f}, "
        f"percentile {100 * row['quality_percentile']:.1f} with fastText"
    )
