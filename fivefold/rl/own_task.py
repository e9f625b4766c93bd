"""The stage `task`: a look at a task before a model is trained on it.

    train/NAME.jsonl, heldout/NAME.jsonl   of a task in a file: its rows, some of them held out
    NAME.py                                of a task in Python: the file as it was

A run of an hour shall not end on a fault that the first problem shows. Problems are made ahead,
their own solutions are judged, and so is an answer that says nothing: a reward function that
raises there will raise on what an untrained model writes. What is wrong with the task ends the run;
what is merely unwise is told.

Surprise: rows of a file keep their text; only their number decides which are held out, so that
rows added at the end move some of the others to the other side.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from fivefold.artifact import atomic_write, write_json
from fivefold.config import Config
from fivefold.data.order import permuted_index
from fivefold.envs.config import FileConfig, FunctionTaskConfig, TaskConfig
from fivefold.envs.open_task import open_task
from fivefold.envs.task import Problem, Task, TaskError
from fivefold.stage import Stage, StageContext
from fivefold.text.conversation import Message
from fivefold.text.event import TurnEnd
from fivefold.verify.config import VerifierConfig
from fivefold.verify.verdict import Verdict
from fivefold.verify.verifier import Verifier

logger = logging.getLogger(__name__)

LEAST_ROWS = 5
"""Rows of a file from which on some are held out."""
_SPLIT_SEED = 7
_NOTHING = "?"
"""An answer that is hardly ever right."""


class OwnTaskConfig(Config):
    """A task to look at."""

    task: TaskConfig
    """Which problems."""
    content_hash: str = ""
    """Hash of its file, so that a changed one starts the run anew; empty for other tasks."""
    problems: int = pydantic.Field(default=100, gt=0)
    """Problems that are made."""
    judged: int = pydantic.Field(default=20, ge=0)
    """Of these, problems whose solution is judged."""
    shown: int = pydantic.Field(default=4, ge=0)
    """Of these, problems that the report shows."""
    heldout_share: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of a file's rows that are held out."""
    most_heldout: int = pydantic.Field(default=64, ge=0)
    """Most rows that are held out."""
    verifier: VerifierConfig = VerifierConfig()
    """Limits of the verifier's workers."""


class OwnTaskStage(Stage):
    """Looks at a task and splits its file; needs nothing."""

    what = "looks at the task"
    is_seeded = False
    config: OwnTaskConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Check the task and write what the later stages read."""
        config = self.config
        task = open_task(config.task)
        count = config.problems if task.size is None else min(config.problems, task.size)
        problems = [task.problem(index) for index in range(count)]
        with Verifier(config.verifier) as verifier:
            found = judge_ahead(problems[: config.judged], verifier)
        for line in found.warnings:
            logger.warning("%s: %s", task.name, line)
        _keep_file(config, task, out)
        _write_page(problems, found, config, out / "page")


@dataclass(frozen=True)
class JudgedAhead:
    """What judging showed before anything was trained."""

    solved: int
    """Solutions that were judged, all of them right."""
    unsolved: int
    """Problems without a known solution."""
    warnings: tuple[str, ...]
    """What is unwise."""


def judge_ahead(problems: list[Problem], verifier: Verifier) -> JudgedAhead:
    """Judge each problem's own solution, and an answer that says nothing.

    Raises:
        TaskError: a solution that cannot be judged, or that is worth no more than saying nothing.
    """
    solved, warnings = 0, dict[str, None]()
    for problem in problems:
        nothing = verifier.verify(_turn(Message(role="assistant", content=_NOTHING)), problem.spec)
        if nothing.value is None:
            warnings[
                f"the answer `{_NOTHING}` cannot be judged ({nothing.detail}); such rollouts are "
                "left out and counted, return 0 for what is no answer"
            ] = None
        if problem.solution is None:
            continue
        verdict = verifier.verify(_turn(problem.solution), problem.spec)
        if verdict.value is None or verdict.value <= (nothing.value or 0.0):
            raise _misjudged(problem, verdict)
        solved += 1
    return JudgedAhead(solved, len(problems) - solved, tuple(warnings))


def heldout_rows(size: int, config: OwnTaskConfig) -> list[int]:
    """Return which of a file's rows are held out, ascending; none of a very short file."""
    wanted = min(max(round(size * config.heldout_share), 1), config.most_heldout)
    if size < LEAST_ROWS or not config.heldout_share:
        return []
    return sorted(int(permuted_index(place, size, _SPLIT_SEED, 0)) for place in range(wanted))


def _turn(message: Message) -> TurnEnd:
    return TurnEnd(message, is_thinking=False, faults=())


def _misjudged(problem: Problem, verdict: Verdict) -> TaskError:
    assert problem.solution is not None, "only solutions are judged"
    worth = f"reward {verdict.value:g}" if verdict.value is not None else verdict.state
    return TaskError(
        expected=f"the verifier to reward the solution of `{problem.id}`, "
        f"{problem.solution.content[:80]!r}",
        found=f"{worth}: {verdict.detail}",
        fix="Correct the solution, or the verifier",
    )


def _keep_file(config: OwnTaskConfig, task: Task, out: Path) -> None:
    if isinstance(config.task, FunctionTaskConfig):
        place = Path(config.task.target.rpartition(":")[0])
        if place.suffix == ".py":
            shutil.copyfile(place, out / place.name)
    elif isinstance(config.task, FileConfig):
        assert task.size is not None, "a file ends"
        path = Path(config.task.path).expanduser()
        rows = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        heldout = set(heldout_rows(len(rows), config))
        parts = {"train": [], "heldout": []}
        for number, row in enumerate(rows):
            parts["heldout" if number in heldout else "train"].append(row)
        for name, part in parts.items():
            with atomic_write(out / name / path.name) as partial:
                partial.write_bytes(b"".join(row + b"\n" for row in part))
        logger.info("%d rows to train on, %d held out", len(parts["train"]), len(parts["heldout"]))


def _write_page(
    problems: list[Problem], found: JudgedAhead, config: OwnTaskConfig, page: Path
) -> None:
    samples = [
        {
            "label": f"{problem.id}, judged by `{problem.spec.kind}`",
            "prompt": "\n".join(message.content for message in problem.prompt) + "\n",
            "text": _spell_solution(problem.solution),
        }
        for problem in problems[: config.shown]
    ]
    write_json(
        page / "10_problems.json",
        {
            "kind": "samples",
            "title": "Problems, with their solutions where the task knows them",
            "note": "Thinking stands in parentheses.",
            "samples": samples,
        },
    )
    rows: list[list[object]] = [
        ["problems made", len(problems)],
        ["solutions judged, and right", found.solved],
        ["problems judged without a known solution", found.unsolved],
        *([f"warning: {line}", None] for line in found.warnings),
    ]
    write_json(
        page / "20_ahead.json",
        {
            "kind": "table",
            "title": "Before training",
            "columns": ["what", "number"],
            "rows": rows,
        },
    )


def _spell_solution(solution: Message | None) -> str:
    if solution is None:
        return "(no solution is known)"
    thinking = solution.reasoning_content
    return solution.content if not thinking else f"({thinking}) {solution.content}"
