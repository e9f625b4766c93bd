"""Stages on several ranks: who executes, who decides, what a second run skips."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from team import Team

from fivefold.config import Config
from fivefold.metrics import StageMetrics
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.stage import OneProcess, ProgressTask, Selection, Stage, StageContext, run_stages

pytestmark = pytest.mark.dist


class NoteConfig(Config):
    text: str = "a"
    """What the stage writes."""


class AloneStage(Stage):
    """Writes a file, on the first rank."""

    config: NoteConfig
    executed: list[str]

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        assert isinstance(context.ranks, OneProcess), "nobody else is here to talk to"
        (out / "note").write_text(self.config.text, encoding="utf-8")
        self.executed.append(self.name)


class TogetherStage(Stage):
    """Reads it on every rank."""

    is_distributed = True
    config: NoteConfig
    executed: list[str]

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        text = (inputs["note"] / "note").read_text(encoding="utf-8")
        assert context.ranks.share(text) == text
        if context.ranks.is_first:
            (out / "copy").write_text(text, encoding="utf-8")
        self.executed.append(self.name)


@contextmanager
def unseen(description: str, total: float, unit: str, /) -> Iterator[ProgressTask]:
    class Task:
        def advance(self, amount: float = 1, **shown: str) -> None:
            pass

    yield Task()


def run_twice(world: World, run: Path, text: str) -> list[list[str]]:
    mesh = Mesh(ParallelConfig(dp=world.size), world)
    found = []
    for _ in range(2):
        executed: list[str] = []
        first = AloneStage("first", NoteConfig(text=text))
        second = TogetherStage("second", NoteConfig(), needs={"note": "first"})
        first.executed = second.executed = executed

        def context_of(stage: Stage) -> StageContext:
            metrics = StageMetrics(run / "metrics.jsonl", stage.name)
            return StageContext(0, "cpu", 1, metrics, unseen, mesh)

        run_stages([first, second], run, Selection(), context_of)
        found.append(executed)
    return found


def test_the_first_rank_decides_and_runs_what_is_not_distributed(
    pair: Team, tmp_path: Path
) -> None:
    assert pair.run(run_twice, tmp_path, "a") == [[["first", "second"], []], [["second"], []]]
    # Another config: both start anew, on both ranks.
    assert pair.run(run_twice, tmp_path, "b") == [[["first", "second"], []], [["second"], []]]
    assert (tmp_path / "second" / "copy").read_text(encoding="utf-8") == "b"
