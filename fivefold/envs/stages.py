"""The stage `tasks`: solved problems as conversations for `sft`.

    NAME.jsonl    one conversation a line, with its split; one file a source

Independent of the run's seed, as all data is: tasks have seeds of their own.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from fivefold.artifact import write_json
from fivefold.envs.config import TasksConfig
from fivefold.envs.solved import Written, write_solved
from fivefold.stage import Stage, StageContext

logger = logging.getLogger(__name__)


class TasksStage(Stage):
    """Writes solved problems as conversations; needs nothing."""

    what = "writes solved problems"
    is_seeded = False
    config: TasksConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Write a file a source, and the page."""
        found = dict[str, Written]()
        with context.track("solved problems", len(self.config.sources), "sources") as bar:
            for name, source in self.config.sources.items():
                found[name] = write_solved(name, source, out, self.config.shown)
                bar.advance(1, source=name)
        for name, written in found.items():
            logger.info(
                "%s: %s conversations to train on, %s held out",
                name,
                f"{written.train:,}",
                f"{written.heldout:,}",
            )
        _write_page(out / "page", found)
        counts = {"train": sum(w.train for w in found.values())}
        counts["heldout"] = sum(w.heldout for w in found.values())
        context.metrics.write(0, {f"tasks/{k}_conversations": n for k, n in counts.items()})


def _write_page(page: Path, found: Mapping[str, Written]) -> None:
    table = {
        "kind": "table",
        "title": "Solved problems",
        "note": "Problems that came again are written once.",
        "columns": ["source", "to train on", "held out", "came again"],
        "rows": [[name, w.train, w.heldout, w.repeated] for name, w in found.items()],
    }
    write_json(page / "10_sources.json", table)
    samples = [sample for written in found.values() for sample in written.shown]
    if samples:
        block = {
            "kind": "samples",
            "title": "A few of them",
            "note": "Thinking stands in parentheses.",
            "samples": samples,
        }
        write_json(page / "20_samples.json", block)
