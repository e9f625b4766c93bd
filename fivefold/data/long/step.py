"""Long-context synthesis as datatrove steps: a library built by one task, then a task's share each.

`BuildLibrary` reads all documents, drops exact copies and writes the library. `ScoreLong` writes
bits per byte of long documents into side files. `Synthesise` runs one method over a task's units;
a unit on which it fails is quarantined with its trace and the others go on.
"""

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.artifact import atomic_write, write_json
from fivefold.data.curate.account import Account, EarlierError, trace_of
from fivefold.data.curate.dedup_step import order_key, task_file
from fivefold.data.curate.step import is_of_the_run, time_limit
from fivefold.data.curate.summary import Summary
from fivefold.data.curate.verdict import Verdict
from fivefold.data.dedup import text_fingerprint
from fivefold.data.document import Document, document_writer, read_documents
from fivefold.data.long.config import LongConfig
from fivefold.data.long.entropylong import EntropyLong
from fivefold.data.long.interleave import Interleave
from fivefold.data.long.library import Library, LibraryBuilder, open_library
from fivefold.data.long.made import WITH_MODEL, Made, Method, Unit
from fivefold.data.long.measure import Ruler, open_ruler
from fivefold.data.long.mrcr import Mrcr
from fivefold.data.long.mrcr_variant import DECLARATION
from fivefold.data.long.natural import Natural, length_reason
from fivefold.data.long.nextlong import NextLong
from fivefold.data.long.repository import Repository
from fivefold.data.long.scorer import BitsPerByte, open_model

_MODEL_PATIENCE = 100
"""Times `page_seconds` that a model may take for a document: a large one is slow with any."""


def recipe_ruler(config: LongConfig) -> Ruler:
    """Return what measures in this recipe."""
    return open_ruler(config.tokenizer or config.model.checkpoint, config.characters_per_token)


class BuildLibrary(PipelineStep):
    """Merge the sorted documents of all tasks, drop exact copies, cut and embed the others."""

    name = "library"
    type = "fivefold"

    def __init__(self, documents: Path, tasks: int, config: LongConfig, out: Path) -> None:
        """Read what `WriteSorted` wrote in `tasks` tasks; write into `out`."""
        super().__init__()
        self.documents = str(documents)
        self.tasks = tasks
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the library and the account `unique`."""
        assert world_size == 1, "the library is one task's"
        files = [task_file(Path(self.documents), task) for task in range(self.tasks)]
        merged = heapq.merge(
            *map(read_documents, files), key=lambda one: order_key(one.id, one.text)
        )
        account, builder = Account(), LibraryBuilder(self.config.index, recipe_ruler(self.config))
        seen: set[bytes] = set()
        ids: set[str] = set()
        for document in merged:
            account.enter(document.text)
            try:
                with time_limit(self.config.page_seconds):
                    fingerprint = text_fingerprint(document.text)
                    reason = "unique.exact" if fingerprint in seen else ""
                    reason = "unique.id" if document.id in ids else reason
                    cut = None if reason else builder.cut(document)
            # Whatever a document does to the library, the others go on; the trace is kept.
            except Exception as error:
                if is_of_the_run(error):
                    raise
                account.quarantine(document.id, document.url, error)
                continue
            account.settle(document.id, document.url, Verdict(document.text, reason))
            if cut:
                builder.add(cut)
                seen.add(fingerprint)
                ids.add(document.id)
        account.check()
        out = Path(self.out)
        builder.write(out)
        write_json(out / "accounts" / "unique" / f"{rank:05d}.json", account.to_json())
        yield from ()


class ScoreLong(PipelineStep):
    """Write bits per byte of the documents that are long and do not repeat themselves."""

    name = "score"
    type = "fivefold"

    def __init__(self, library: Path, config: LongConfig, out: Path) -> None:
        """Write `OUT/TASK.parquet` with id, bits_per_byte and the trace of a failure."""
        super().__init__()
        self.library = str(library)
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Score every n-th document of the library."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        assert self.config.natural
        library = open_library(Path(self.library))
        scorer = BitsPerByte(open_model(self.config.model), self.config.natural.scored_windows)
        ids, scores, traces = [], [], []
        for place in range(rank, len(library.documents), world_size):
            document = library.documents[place]
            tokens = int(library.document_tokens[place])
            if not length_reason(document.text, tokens, self.config.natural):
                ids.append(document.id)
                score, trace = self._score(scorer, document)
                scores.append(score)
                traces.append(trace)
        values = np.array(scores, np.float64)
        columns = {
            "id": arrow.array(ids, arrow.string()),
            "bits_per_byte": values,
            "trace": arrow.array(traces, arrow.string()),
        }
        with atomic_write(Path(self.out) / f"{rank:05d}.parquet") as partial:
            parquet.write_table(arrow.table(columns), partial, compression="zstd")
        yield from ()

    def _score(self, scorer: BitsPerByte, document: Document) -> tuple[float, str]:
        """Return bits per byte and no trace, or NaN and the trace of where the model failed."""
        try:
            with time_limit(_MODEL_PATIENCE * self.config.page_seconds):
                return float(scorer.score([document.text])[0]), ""
        # One document does not stop the others; the method `natural` quarantines it.
        except Exception as error:
            if is_of_the_run(error):
                raise
            return math.nan, trace_of(error)


def read_long_scores(folder: Path) -> dict[str, float]:
    """Return bits per byte by document id, from all tasks' files."""
    import pyarrow.parquet as parquet

    scores: dict[str, float] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = parquet.read_table(path)
        pairs = zip(table["id"].to_pylist(), table["bits_per_byte"].to_pylist(), strict=True)
        scores.update(pairs)
    return scores


def read_long_traces(folder: Path) -> dict[str, str]:
    """Return where the model failed by document id, of the documents on which it did."""
    import pyarrow.parquet as parquet

    traces: dict[str, str] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = parquet.read_table(path, columns=["id", "trace"])
        pairs = zip(table["id"].to_pylist(), table["trace"].to_pylist(), strict=True)
        traces.update((name, trace) for name, trace in pairs if trace)
    return traces


def make_method(
    name: str, library: Library, config: LongConfig, scores: dict[str, float] | None
) -> Method:
    """Return a method ready to work."""
    ruler = recipe_ruler(config)
    makers: dict[str, Callable[[], Method]] = {
        "natural": lambda: Natural(library, config, scores),
        "nextlong": lambda: NextLong(library, config, ruler),
        "entropylong": lambda: EntropyLong(library, config, ruler, open_model(config.model)),
        "interleave": lambda: Interleave(library, config, ruler),
        "mrcr": lambda: Mrcr(library, config, ruler),
        "repository": lambda: Repository(library, config, ruler),
    }
    return makers[name]()


class Synthesise(PipelineStep):
    """Run one method over a task's units."""

    type = "fivefold"

    def __init__(
        self, method: str, library: Path, config: LongConfig, scores: Path | None, out: Path
    ) -> None:
        """Write documents, account, statistics and summary of each task into `out`."""
        self.name = method
        super().__init__()
        self.library = str(library)
        self.config = config
        self.scores = str(scores) if scores else None
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Make the sequences of this task."""
        out = Path(self.out)
        scores = read_long_scores(Path(self.scores)) if self.scores else None
        traces = read_long_traces(Path(self.scores)) if self.scores else {}
        method = make_method(self.name, open_library(Path(self.library)), self.config, scores)
        account, summary = Account(), Summary()
        conversations: list[bytes] = []
        with document_writer(sequence_file(out, self.name, rank)) as write:
            for unit in method.units(rank, world_size):
                for made in self._make(method, unit, account, traces):
                    if made.sequence:
                        sequence = _take_conversation(made.sequence, conversations)
                        summary.enter(sequence.text, sequence.source, sequence.lang)
                        write(sequence)
        account.check()
        if self.name == "mrcr":
            with atomic_write(out / "conversations" / f"{rank:05d}.jsonl") as partial:
                partial.write_bytes(b"".join(conversations))
        write_json(out / "summary" / f"{rank:05d}.json", summary.to_json())
        write_json(out / "statistics" / f"{rank:05d}.json", method.statistics.to_json())
        write_json(out / "accounts" / self.name / f"{rank:05d}.json", account.to_json())
        yield from ()

    def _make(
        self, method: Method, unit: Unit, account: Account, traces: Mapping[str, str]
    ) -> list[Made]:
        for document in unit.documents:
            account.enter(document.text)
        patience = _MODEL_PATIENCE if self.name in WITH_MODEL else 1
        try:
            # A unit may take as long as all of its documents together.
            with time_limit(patience * self.config.page_seconds * max(1, len(unit.documents))):
                for document in unit.documents:
                    if document.id in traces:
                        raise EarlierError(traces[document.id])
                outcomes = method.make(unit)
        # Whatever a unit does to a method, the others go on; the trace is kept and counted.
        except Exception as error:
            if is_of_the_run(error):
                raise
            for document in unit.documents:
                account.quarantine(document.id, document.url, error)
            self.stat_update("quarantined")
            return []
        for made in outcomes:
            text = made.sequence.text if made.sequence else made.document.text
            kept = Verdict(made.document.text, made.reason) if made.reason else Verdict(text)
            account.settle(made.document.id, made.document.url, kept)
        return outcomes


def sequence_file(folder: Path, method: str, task: int) -> Path:
    """Return the file of a task's sequences; its name is unique among all methods."""
    return folder / "documents" / f"{method}-{task:05d}.jsonl.zst"


def _take_conversation(sequence: Document, conversations: list[bytes]) -> Document:
    """Move the messages out of a document's `meta` into a line of a conversation file."""
    if "messages" not in sequence.meta:
        return sequence
    meta = dict(sequence.meta)
    line = {"messages": meta.pop("messages"), "source": sequence.source, "meta": meta}
    if any("tool_calls" in message for message in line["messages"]):
        line["tools"] = [DECLARATION]
    conversations.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return Document(sequence.id, sequence.text, sequence.source, sequence.url, sequence.lang, meta)
