"""The stage `task`: a look at a task before a model is trained on it.

    train/NAME.jsonl, heldout/NAME.jsonl   of a task in a file: its rows, some of them held out
    heldout/NAME.jsonl                     of an endless task: problems that do not train
    NAME.py                                of a task in Python: the file as it was

A run of an hour shall not end on a fault that a problem shows before. All problems that may train
are made ahead: their prompts must leave room for an answer, and none of them is held out. The first
ones' own solutions are judged, and so are answers that say nothing: a reward function that raises
there will raise on what an untrained model writes. What is wrong with the task ends the run; what
is merely unwise is told.

Surprise: rows of a file keep their text (where they have no id, they are given one), and their
number and prompts decide which are held out, so that rows added at the end move some of the others
to the other side.
"""

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from fivefold.artifact import write_json
from fivefold.config import Config
from fivefold.envs.config import FunctionTaskConfig, TaskConfig
from fivefold.envs.file_task import FileTask
from fivefold.envs.open_task import open_task
from fivefold.envs.task import Problem, Task, TaskError, prompt_key
from fivefold.rl.heldout import (
    Ahead,
    HeldOut,
    Row,
    choose_ahead,
    split_file,
    write_ahead,
)
from fivefold.stage import Stage, StageContext
from fivefold.text.conversation import Message
from fivefold.text.event import TurnEnd
from fivefold.text.template import render_prompt
from fivefold.text.tokenizer import Tokenizer, load_tokenizer
from fivefold.verify.config import VerifierConfig
from fivefold.verify.verdict import Verdict
from fivefold.verify.verifier import Verifier

logger = logging.getLogger(__name__)

_NOTHING = ("?", "")
"""Answers that are hardly ever right; the empty one is that of a turn that does not end."""


class OwnTaskConfig(Config):
    """A task to look at."""

    task: TaskConfig
    """Which problems."""
    name: str = ""
    """What the file of held-out problems is called; empty: as the task."""
    content_hash: str = ""
    """Hash of its file, so that a changed one starts the run anew; empty for other tasks."""
    problems: int = pydantic.Field(default=100, gt=0)
    """First problems, of which the next two take theirs."""
    judged: int = pydantic.Field(default=20, ge=0)
    """Of these, problems whose solution is judged."""
    shown: int = pydantic.Field(default=4, ge=0)
    """Of these, problems that the report shows."""
    heldout_share: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of a file's rows that are held out."""
    most_heldout: int = pydantic.Field(default=64, ge=0)
    """Most rows of a file that are held out."""
    heldout: int = pydantic.Field(default=0, ge=0)
    """Problems of an endless task that are held out; a skill has a split of its own."""
    trained: int = pydantic.Field(default=0, ge=0)
    """Problems of an endless task that may train, from its first on; of a file all rows may."""
    longest_prompt_tokens: int | None = pydantic.Field(default=None, gt=0)
    """Longest prompt that leaves room for an answer; None: prompts are not measured."""
    thinks: bool = True
    """Do prompts open a thinking block? It counts in their length."""
    verifier: VerifierConfig = VerifierConfig()
    """Limits of the verifier's workers."""


class OwnTaskStage(Stage):
    """Looks at a task and holds problems out; needs `start`, where it measures prompts."""

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
        lengths = _Lengths(config, inputs)
        checked, trained = _check_all(task, config, lengths, context)
        ahead = None
        if config.heldout:
            ahead = choose_ahead(task, trained, config.heldout, lengths.check)
        lengths.refuse()
        kept = _hold_out(config, task, ahead, out)
        warnings = [*found.warnings, *kept.warnings]
        for line in warnings:
            logger.warning("%s: %s", task.name, line)
        rows: list[Row] = [
            ["problems checked, all that may train among them", checked],
            ["different prompts among them", len(trained)],
            *kept.counts,
        ]
        _write_page(problems, found, rows, warnings, config, out / "page")


def _check_all(
    task: Task, config: OwnTaskConfig, lengths: "_Lengths", context: StageContext
) -> tuple[int, set[bytes]]:
    """Make every problem that may train; return how many there are, and their prompts' keys."""
    count = task.size if isinstance(task, FileTask) else config.trained
    count = min(count, task.size or count)
    keys = set[bytes]()
    with context.track("problems ahead", count, "problems") as bar:
        for index in range(count):
            problem = task.problem(index)
            lengths.check(problem)
            keys.add(prompt_key(problem))
            bar.advance(1)
    return count, keys


class _Lengths:
    """Counts the prompts that leave no room for an answer."""

    def __init__(self, config: OwnTaskConfig, inputs: Mapping[str, Path]) -> None:
        self._limit, self._thinks = config.longest_prompt_tokens, config.thinks
        self._tokenizer: Tokenizer | None = None
        if self._limit is not None:
            self._tokenizer = load_tokenizer(inputs["start"])
        self._seen = 0
        self._too_long: list[tuple[str, int]] = []

    def check(self, problem: Problem) -> None:
        """Measure a prompt."""
        if self._tokenizer is None or self._limit is None:
            return
        ids = render_prompt(problem.prompt, self._tokenizer, enable_thinking=self._thinks)
        self._seen += 1
        if len(ids) > self._limit:
            self._too_long.append((problem.id, len(ids)))

    def refuse(self) -> None:
        """Raise TaskError where prompts were too long."""
        if not self._too_long:
            return
        name, tokens = max(self._too_long, key=lambda found: found[1])
        raise TaskError(
            expected=f"prompts of at most {self._limit} tokens, which leave room for an answer in "
            "the model's context and in a row of the trainer",
            found=f"{len(self._too_long)} longer ones of {self._seen}, the longest `{name}` with "
            f"{tokens}",
            fix="Leave them out or shorten them, lower `rl.sampling.max_new_tokens` (of `fivefold "
            "attempts`: `attempts.max_new_tokens`), or raise `rl.update.row_tokens` where that is "
            "shorter than the model's context",
        )


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
    """Judge each problem's own solution, and answers that say nothing.

    Raises:
        TaskError: a solution that cannot be judged, or that is worth no more than saying nothing.
    """
    solved, warnings = 0, dict[str, None]()
    for problem in problems:
        least = -math.inf
        for text in _NOTHING:
            nothing = verifier.verify(_turn(Message(role="assistant", content=text)), problem.spec)
            if nothing.value is None:
                what = f"the answer `{text}`" if text else "an empty answer"
                warnings[
                    f"{what} cannot be judged ({nothing.detail}); such rollouts are left out and "
                    "counted, return 0 for what is no answer"
                ] = None
            else:
                least = max(least, nothing.value)
        if problem.solution is None:
            continue
        verdict = verifier.verify(_turn(problem.solution), problem.spec)
        # Where saying nothing cannot be judged, a solution's reward has nothing to exceed.
        if verdict.value is None or verdict.value <= least:
            raise _misjudged(problem, verdict)
        solved += 1
    return JudgedAhead(solved, len(problems) - solved, tuple(warnings))


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


def _hold_out(config: OwnTaskConfig, task: Task, ahead: Ahead | None, out: Path) -> HeldOut:
    """Write the task's files; say what was held out."""
    if isinstance(task, FileTask):
        return split_file(task, config.heldout_share, config.most_heldout, out)
    if isinstance(config.task, FunctionTaskConfig):
        place = Path(config.task.target.rpartition(":")[0])
        if place.suffix == ".py":
            shutil.copyfile(place, out / place.name)
    if ahead is None:
        return HeldOut((), ())
    path = out / "heldout" / f"{config.name or task.name}.jsonl"
    return write_ahead(ahead, config.heldout, path)


def _write_page(
    problems: list[Problem],
    found: JudgedAhead,
    counted: list[Row],
    warnings: list[str],
    config: OwnTaskConfig,
    page: Path,
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
    rows: list[Row] = [
        *counted,
        ["solutions judged, and right", found.solved],
        ["problems judged without a known solution", found.unsolved],
        *([f"warning: {line}", None] for line in warnings),
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
