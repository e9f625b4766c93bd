"""Decontamination as steps of datatrove: an index built once, then every document against it.

A stage of one task with `BuildBenchmarkIndex`, and `Decontaminate` among the steps of a later one;
`run.CurationRun` brings both to every recipe.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.artifact import write_json
from fivefold.data.curate.benchmark_items import read_benchmarks
from fivefold.data.curate.benchmark_source import OWN, PUBLIC
from fivefold.data.curate.decontaminate import build_index, decontaminate, read_index, write_index
from fivefold.data.curate.decontaminate_config import DecontaminationConfig
from fivefold.data.curate.step import JudgeStep
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import has_places
from fivefold.errors import ConfigError

logger = logging.getLogger(__name__)

_INDEX = "benchmarks.npz"


class BuildBenchmarkIndex(PipelineStep):
    """Read all benchmark files and write their index; one task."""

    name = "benchmarks"
    type = "fivefold"

    def __init__(self, config: DecontaminationConfig, out: Path) -> None:
        """Write `OUT/benchmarks.npz`, and `OUT/benchmarks.json` with the counts."""
        super().__init__()
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the index; nothing goes on from here.

        Raises:
            CorruptFileError: a file is not of the kind that its name says.
            ConfigError: the files hold no item.
        """
        index, counts = build_index(read_benchmarks(self.config), self.config)
        given = [name for name in self.config.benchmarks if name not in (OWN, PUBLIC)]
        if given and not len(index.hashes):
            raise ConfigError(
                expected=f"a question of {self.config.min_words} words in {', '.join(given)}",
                found=f"{len(index.items):,} items, none long enough",
                fix="Correct `benchmarks`; fields such as `question` or `prompt` are read",
            )
        write_index(index, Path(self.out) / _INDEX)
        write_json(Path(self.out) / "benchmarks.json", counts)
        yield from ()


class Decontaminate(JudgeStep):
    """Drop the documents that hold an item of a benchmark, or cut it out.

    A text with places in its `meta` is dropped whatever the policy: a cut would shift them.
    """

    def __init__(
        self,
        config: DecontaminationConfig,
        index: Path,
        accounts: Path,
        page_seconds: float,
        name: str = "benchmarks",
    ) -> None:
        """See `JudgeStep`; `index` is the folder that `BuildBenchmarkIndex` wrote into."""
        super().__init__(name, accounts, page_seconds)
        self.config = config
        self.index = str(index)

    def prepare(self) -> Callable[[Page], Verdict]:
        """Read the index."""
        index = read_index(Path(self.index) / _INDEX)
        whole = self.config.model_copy(update={"policy": "drop"})

        def judge_page(page: Page) -> Verdict:
            config = whole if has_places(page.metadata["meta"]) else self.config
            return decontaminate(page.text, index, config)

        return judge_page
