"""De-duplication of a whole corpus as datatrove steps: sort, sign, choose, drop.

`WriteSorted` ends each task of filtering: its documents in the order of their ids. `SignDocuments`
writes a fingerprint and a MinHash signature for each. `ChooseKeepers` is one task that reads all
signatures and decides who stays. `ReadMerged` reads all documents merged in the order of their
ids, and `DropDuplicates` drops what was decided and applies the Bloom rule, for which that order
matters. So the result depends on the documents alone, not on files, tasks or workers.

Order: by id, then by the hash of the text, so that equal ids of different texts have an order too.
Memory: the first step holds a task's documents, the second 16 + 4 * bands * rows bytes for each
document.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from fivefold.artifact import atomic_write, read_json, write_json
from fivefold.data.curate.account import EarlierError, trace_of
from fivefold.data.curate.config import BloomConfig, MinHashConfig
from fivefold.data.curate.minhash import NO_SHINGLES, text_signature
from fivefold.data.curate.near_duplicate import (
    candidate_pairs,
    choose_keepers,
    components,
    equal_neighbours,
)
from fivefold.data.curate.paragraph_dedup import ParagraphDedup
from fivefold.data.curate.step import (
    JudgeStep,
    document_to_page,
    is_of_the_run,
    page_to_document,
    time_limit,
)
from fivefold.data.curate.verdict import Verdict
from fivefold.data.dedup import text_fingerprint
from fivefold.data.document import document_writer, read_documents

REASONS = ("", "duplicate.id", "duplicate.exact", "duplicate.near")
"""What `ChooseKeepers` writes for each document, as an index into this."""


def order_key(document_id: str, text: str) -> str:
    """Return what orders documents: their id, then a hash of their text."""
    digest = xxhash.xxh3_128_hexdigest(text.encode("utf-8", errors="replace"))
    return f"{document_id}\0{digest}"


class WriteSorted(PipelineStep):
    """Write a task's documents in their order."""

    name = "sort"
    type = "writer"

    def __init__(self, out: Path) -> None:
        """Write `OUT/TASK.jsonl.zst`."""
        super().__init__()
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write everything; nothing goes on from here."""
        pages = sorted(data or (), key=lambda page: order_key(page.id, page.text))
        with document_writer(task_file(Path(self.out), rank)) as write:
            for page in pages:
                write(page_to_document(page))
        yield from ()


def task_file(folder: Path, task: int) -> Path:
    """Return the file of documents that one task writes."""
    return folder / f"{task:05d}.jsonl.zst"


class SignDocuments(PipelineStep):
    """Write what de-duplication has to know of each document of a task, in their order."""

    name = "sign"
    type = "fivefold"

    def __init__(self, config: MinHashConfig | None, out: Path, page_seconds: float) -> None:
        """Write `OUT/TASK.npz`; without a config only exact copies will be found."""
        super().__init__()
        self.config = config
        self.out = str(out)
        self.page_seconds = page_seconds

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write keys, fingerprints, lengths, signatures and traces; nothing goes on from here."""
        keys, fingerprints, characters, signatures = [], [], [], []
        traces: dict[str, str] = {}
        width = self.config.bands * self.config.rows if self.config else 0
        for page in data or ():
            key = order_key(page.id, page.text)
            try:
                with time_limit(self.page_seconds):
                    fingerprint = text_fingerprint(page.text)
                    signature = text_signature(page.text, self.config) if self.config else ()
            # What has no signature is nobody's copy; `DropDuplicates` quarantines it.
            except Exception as error:
                if is_of_the_run(error):
                    raise
                traces[key] = trace_of(error)
                fingerprint = xxhash.xxh3_128_digest(key.encode())
                signature = np.full(width, NO_SHINGLES, dtype=np.uint32)
            keys.append(key.encode())
            fingerprints.append(np.void(fingerprint))
            characters.append(len(page.text))
            signatures.append(signature)
        write_json(Path(self.out) / f"{rank:05d}.json", traces)
        path = Path(self.out) / f"{rank:05d}.npz"
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                keys=np.array(keys, dtype=bytes),
                fingerprints=np.array(fingerprints, dtype="V16"),
                characters=np.array(characters, dtype=np.int64),
                signatures=np.array(signatures, dtype=np.uint32).reshape(len(keys), width),
            )
        yield from ()


class ChooseKeepers(PipelineStep):
    """Decide which documents stay, from all signatures."""

    name = "choose"
    type = "fivefold"

    def __init__(self, config: MinHashConfig | None, signed: Path, out: Path, tasks: int) -> None:
        """Read what `tasks` tasks left in `signed`; write two arrays and traces into `out`."""
        super().__init__()
        self.config = config
        self.signed = str(signed)
        self.out = str(out)
        self.tasks = tasks

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the decision for each document, in the order of `order_key`."""
        parts = [np.load(Path(self.signed) / f"{task:05d}.npz") for task in range(self.tasks)]
        keys = np.concatenate([part["keys"] for part in parts])
        order = np.argsort(keys, kind="stable")
        fingerprints = np.concatenate([part["fingerprints"] for part in parts])[order]
        characters = np.concatenate([part["characters"] for part in parts])[order]
        reasons, keepers = choose(
            keys[order],
            fingerprints,
            characters,
            np.concatenate([part["signatures"] for part in parts])[order],
            self.config.bands if self.config else 0,
        )
        for name, values in (("reasons", reasons), ("keepers", keepers)):
            path = Path(self.out) / f"{name}.npy"
            with atomic_write(path) as partial, partial.open("wb") as file:
                np.save(file, values)
        traces: dict[str, str] = {}
        for task in range(self.tasks):
            traces |= read_json(Path(self.signed) / f"{task:05d}.json") or {}
        write_json(Path(self.out) / "traces.json", traces)
        yield from ()


def choose(
    keys: NDArray,
    fingerprints: NDArray,
    characters: NDArray[np.int64],
    signatures: NDArray[np.uint32],
    bands: int,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return for each document the index into `REASONS`, and the document that stays for it.

    Documents come in the order of their keys. Of equal ids the first stays; of the others, copies
    and near-duplicates form components in which the longest stays, and of those the first.
    """
    count = len(keys)
    ids = np.array([key.split(b"\0")[0] for key in keys.tolist()], dtype=bytes)
    is_repeated_id = np.append(False, ids[1:] == ids[:-1])[:count]
    first_of_id = np.maximum.accumulate(np.where(is_repeated_id, 0, np.arange(count)))
    rows = np.flatnonzero(~is_repeated_id)
    _, texts = np.unique(fingerprints[rows], return_inverse=True)
    copies = components(len(rows), equal_neighbours(texts))
    pairs = [equal_neighbours(texts)]
    if bands and len(rows):
        # A document without any word has no shingle: all ones, which must not attract others.
        worded = np.flatnonzero((signatures[rows] != NO_SHINGLES).any(axis=1))
        pairs.append(worded[candidate_pairs(signatures[rows][worded], bands)])
    keepers = choose_keepers(components(len(rows), np.concatenate(pairs)), characters[rows])
    is_dropped = keepers != np.arange(len(rows))
    is_copy = (copies == copies[keepers]) | (copies != np.arange(len(rows)))
    reasons = np.zeros(count, dtype=np.uint8)
    reasons[rows] = np.where(is_dropped, np.where(is_copy, 2, 3), 0)
    reasons[is_repeated_id] = 1
    everyone = first_of_id.copy()
    everyone[rows] = rows[keepers]
    return reasons, everyone


class ReadMerged(PipelineStep):
    """Read what `WriteSorted` wrote in all tasks, merged in order, with each one's decision."""

    name = "merged"
    type = "reader"

    def __init__(self, documents: Path, decisions: Path, tasks: int) -> None:
        """Take the folders of documents and of decisions, and the number of tasks that wrote."""
        super().__init__()
        self.documents = str(documents)
        self.decisions = str(decisions)
        self.tasks = tasks

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield all documents; only one task may run this."""
        assert world_size == 1, "merging is one task"
        reasons = np.load(Path(self.decisions) / "reasons.npy").tolist()
        traces = read_json(Path(self.decisions) / "traces.json") or {}
        files = [task_file(Path(self.documents), task) for task in range(self.tasks)]
        streams = [map(document_to_page, read_documents(file)) for file in files]
        merged = heapq.merge(*streams, key=lambda page: order_key(page.id, page.text).encode())
        for reason, page in zip(reasons, merged, strict=True):
            page.metadata["decision"] = REASONS[reason]
            page.metadata["trace"] = traces.get(order_key(page.id, page.text)) if traces else None
            yield page


class DropDuplicates(JudgeStep):
    """Drop the documents that were decided against; then apply the Bloom rule to the others."""

    def __init__(self, config: BloomConfig | None, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`; without a config there is no Bloom rule."""
        super().__init__("duplicates", accounts, page_seconds)
        self.config = config
        self._paragraphs: ParagraphDedup | None = None

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the documents that stay; say at the end if the filter was too small."""
        yield from super().run(data, rank, world_size)
        if self._paragraphs:
            self._paragraphs.warn_if_full()

    def prepare(self) -> Callable[[Page], Verdict]:
        """Begin with an empty filter."""
        paragraphs = self._paragraphs = ParagraphDedup(self.config) if self.config else None

        def judge_page(page: Page) -> Verdict:
            decision, trace = (page.metadata.pop(name) for name in ("decision", "trace"))
            if trace and not decision:
                raise EarlierError(trace)
            if decision or paragraphs is None:
                return Verdict(page.text, decision)
            return paragraphs.judge(page.text)

        return judge_page


class WriteDocuments(PipelineStep):
    """Write the documents into files of bounded size."""

    name = "write"
    type = "writer"

    def __init__(self, out: Path, characters_per_file: int) -> None:
        """Write `OUT/00000.jsonl.zst` and so on."""
        super().__init__()
        self.out = str(out)
        self.characters_per_file = characters_per_file

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write everything; nothing goes on from here."""
        assert world_size == 1, "files are numbered by one task"
        pages, number = iter(data or ()), 0
        page = next(pages, None)
        while page is not None or number == 0:
            with document_writer(task_file(Path(self.out), number)) as write:
                written = 0
                while page is not None and written < self.characters_per_file:
                    write(page_to_document(page))
                    written += len(page.text)
                    page = next(pages, None)
            number += 1
        yield from ()
