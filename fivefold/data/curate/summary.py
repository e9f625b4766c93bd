"""What a curated corpus holds: languages, sources, lengths; counted while documents are written."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.artifact import read_json, write_json
from fivefold.errors import CorruptFileError

LENGTHS = (200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
"""Characters at which one class of lengths ends and the next begins."""


@dataclass
class Summary:
    """Counts over documents."""

    documents: int = 0
    characters: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    """Documents by language code; `unknown` where there is none."""
    sources: Counter[str] = field(default_factory=Counter)
    """Documents by source."""
    lengths: Counter[str] = field(default_factory=Counter)
    """Documents by the class of their length."""

    def enter(self, text: str, source: str, lang: str) -> None:
        """Count a document."""
        self.documents += 1
        self.characters += len(text)
        self.languages[lang or "unknown"] += 1
        self.sources[source] += 1
        self.lengths[length_class(len(text))] += 1

    def add(self, other: dict[str, Any]) -> None:
        """Add what `to_json` gave of another one."""
        self.documents += other["documents"]
        self.characters += other["characters"]
        for name in ("languages", "sources", "lengths"):
            getattr(self, name).update(other[name])

    def to_json(self) -> dict[str, Any]:
        """Return plain values: languages and sources by size, lengths ascending."""
        return {
            "documents": self.documents,
            "characters": self.characters,
            "languages": _by_size(self.languages),
            "sources": _by_size(self.sources),
            "lengths": {name: self.lengths[name] for name in _CLASSES if self.lengths[name]},
        }


def _by_size(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def length_class(characters: int) -> str:
    """Return the name of the class of lengths to which a document belongs."""
    return _CLASSES[sum(characters >= edge for edge in LENGTHS)]


_CLASSES = (
    f"below {LENGTHS[0]:,}",
    *(f"{low:,} to {high:,}" for low, high in pairwise(LENGTHS)),
    f"{LENGTHS[-1]:,} and more",
)


class Summarise(PipelineStep):
    """Count the documents that pass."""

    name = "summarise"
    type = "fivefold"

    def __init__(self, out: Path) -> None:
        """Write `OUT/TASK.json`."""
        super().__init__()
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield everything as it is."""
        summary = Summary()
        for page in data or ():
            summary.enter(page.text, page.metadata["source"], page.metadata["lang"])
            yield page
        write_json(Path(self.out) / f"{rank:05d}.json", summary.to_json())


def read_summary(folder: Path, tasks: int) -> Summary:
    """Return the sum of what `tasks` tasks counted.

    Raises:
        CorruptFileError: a file is missing or cut.
    """
    whole = Summary()
    for task in range(tasks):
        value = read_json(folder / f"{task:05d}.json")
        if value is None:
            raise CorruptFileError(
                expected=f"the summary of task {task} in `{folder}`",
                found="no readable file",
                fix="Remove the folder of that stage and run again",
            )
        whole.add(value)
    return whole
