"""Learning as datatrove steps, one task each: the classifiers that no config names.

Positives are references. Negatives of quality are the run's own pages, as in DCLM; of those that
the embedding classifier learns from, a part are pages that fastText finds good without choosing
them. Positives and negatives of world knowledge are references and the run's own pages with a high
or a low mark (`label_step`).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.data.curate.classifier import train_classifier
from fivefold.data.document import Document, read_documents
from fivefold.data.web.classifier import draw, train_vector_classifier
from fivefold.data.web.config import KnowledgeLabelConfig, WebConfig
from fivefold.data.web.label_step import read_marks
from fivefold.data.web.quality import read_quality
from fivefold.data.web.reference import References
from fivefold.data.web.sample import HALVES, Sample, draw_evenly, half_folder, half_of


class LearnQuality(PipelineStep):
    """Train two fastText models, on one half of the run's documents each."""

    name = "learn_quality"
    type = "fivefold"

    def __init__(
        self, documents: Sequence[Path], references: References, config: WebConfig, out: Path
    ) -> None:
        """Take all files of documents; write `OUT/half-N/model.bin`."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.references = references
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the models; nothing goes on from here."""
        config, count = self.config, self.config.head.max_documents
        good = draw_evenly(self.references["quality"], count, config.reference.max_characters)
        known = {one.id for one in good}
        for half in range(HALVES):
            own = (
                document
                for file in self.documents
                for document in read_documents(Path(file))
                if half_of(document.id) == half and document.id not in known
            )
            train_classifier(good, draw(own, count), half_folder(self.out, half), config.training)
        yield from ()


class LearnClassifiers(PipelineStep):
    """Train the classifiers over vectors that no config names."""

    name = "learn"
    type = "fivefold"

    def __init__(
        self,
        documents: Sequence[Path],
        scores: Path,
        labels: Path,
        references: References,
        config: WebConfig,
        out: Path,
    ) -> None:
        """Take all files of documents, their fastText scores and marks; write `OUT/KIND`."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.scores = str(scores)
        self.labels = str(labels)
        self.references = references
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the classifiers; nothing goes on from here."""
        config, out = self.config, Path(self.out)
        knowledge = self._references("knowledge")
        if config.embedding and not config.embedding.model:
            good = [*self._references("quality"), *knowledge]
            other = self._negatives({one.id for one in good})
            train_vector_classifier(
                "embedding", good, other, out / "embedding", config.embed, config.head
            )
        if config.knowledge and not config.knowledge.model:
            self._learn_knowledge(knowledge, config.knowledge.label, out)
        yield from ()

    def _learn_knowledge(
        self, entries: list[Document], label: KnowledgeLabelConfig, out: Path
    ) -> None:
        """Learn from references and from the run's own pages with a high or a low mark."""
        config, files = self.config, [Path(file) for file in self.documents]
        marks = read_marks(files, Path(self.labels), label.max_failed)
        plain = self._references("plain")
        known = {one.id for one in (*entries, *plain)}
        own = [
            document
            for file in files
            for document in read_documents(file)
            if document.id in marks and document.id not in known
        ]
        good = [one for one in own if marks[one.id] >= label.positive_from]
        other = [one for one in own if marks[one.id] <= label.negative_to]
        name = "world_knowledge"
        head = config.head.model_copy(
            update={"max_documents": config.head.max_documents + len(own)}
        )
        train_vector_classifier(
            name, [*entries, *good], [*plain, *other], out / name, config.embed, head
        )

    def _references(self, field: str) -> list[Document]:
        reference, count = self.config.reference, self.config.head.max_documents
        return draw_evenly(self.references[field], count, reference.max_characters)

    def _negatives(self, positives: set[str]) -> list[Document]:
        """Return documents of the run that are embedded: hard ones, then any others."""
        config, files = self.config.head, [Path(file) for file in self.documents]
        quality = read_quality(files, Path(self.scores), self.config)
        low, high = config.hard_percentiles
        is_hard = (quality.percentiles >= low) & (quality.percentiles < high)
        hard = {name for name, yes in zip(quality.ids, is_hard.tolist(), strict=True) if yes}
        sample = Sample(quality.ids, self.config.most_embedded)
        able = [
            document
            for file in files
            for document in read_documents(file)
            if document.id in sample and document.id not in positives
        ]
        wanted = round(config.hard_share * config.max_documents)
        few = draw((one for one in able if one.id in hard), wanted)
        taken = {one.id for one in few}
        others = (one for one in able if one.id not in taken)
        return [*few, *draw(others, config.max_documents - len(few))]
