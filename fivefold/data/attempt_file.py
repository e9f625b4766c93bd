"""Attempts on disk: what a model answered to each problem of a task, and what that was worth.

One line is one problem: its `id`, its `row` (as a task file has it, `envs.row`), and its
`attempts`, each with the parsed turn, the ids that were sampled, the reward and how it ended. From
these lines come pass counts, conversations for fine-tuning and problems for RL; none of them has to
be sampled again when a threshold changes.

Surprise: lines are appended in blocks of several problems, each block with one write. What a kill
leaves of a block is taken back, for the problems of a block were sampled together, and sampling
half of them again would be another batch with other roundings.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from fivefold.artifact import storage_errors
from fivefold.data.attempts import Attempt, PassCount, count_passes
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError
from fivefold.text.conversation import Message, read_messages, write_messages

State = Literal["scored", "invalid", "infra", "aborted"]
"""Judged; the task cannot judge; the verifier failed; the engine gave no whole answer."""
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Answer:
    """One attempt at a problem."""

    message: Message
    """The assistant's turn, parsed from the ids."""
    ids: tuple[int, ...]
    """What was sampled, the stop id included."""
    reward: float | None
    """What the verifier said; None unless the state is `scored`."""
    state: State
    detail: str = ""
    """What the verifier said in words."""
    is_truncated: bool = False
    """Did the answer end at the token limit?"""


@dataclass(frozen=True)
class AttemptedProblem:
    """A problem with all attempts at it."""

    id: str
    """Names the problem among all of its task; pass counts belong to it."""
    row: dict[str, Any]
    """The problem as a line of a task file."""
    answers: tuple[Answer, ...]

    @property
    def attempts(self) -> list[Attempt[Answer]]:
        """The answers with their rewards, as `attempts` chooses among them."""
        return [Attempt(answer, answer.reward) for answer in self.answers]

    @property
    def states(self) -> Counter[str]:
        """Answers by state."""
        return Counter(answer.state for answer in self.answers)

    def count(self, threshold: float = 1.0) -> PassCount:
        """Return k of n; answers that could not be judged are in neither."""
        return count_passes(self.attempts, threshold)


def append_attempts(path: Path, problems: Sequence[AttemptedProblem]) -> None:
    """Append a block of problems in one write, which is on the disk when this returns.

    Raises:
        StorageError: the disk is full.
    """
    lines = "".join(json.dumps(_write(problem), ensure_ascii=False) + "\n" for problem in problems)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def resume_attempts(path: Path, block: int) -> int:
    """Return how many problems stand in a file that a kill may have cut, in whole blocks.

    What is beyond the last whole block is removed.
    """
    if not path.is_file():
        return 0
    with path.open("rb+") as file:
        ends = _line_ends(file)
        kept = len(ends) // block * block
        file.truncate(ends[kept - 1] if kept else 0)
    return kept


def _line_ends(lines: Iterable[bytes]) -> list[int]:
    ends, place = list[int](), 0
    for line in lines:
        place += len(line)
        if line.endswith(b"\n"):
            ends.append(place)
    return ends


def read_attempts(path: Path) -> Iterator[AttemptedProblem]:
    """Yield the problems of a file.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: a line that is no problem with attempts, with its number.
    """
    if not path.is_file():
        raise MissingFileError(
            expected=f"attempts at `{path}`",
            found="no such file",
            fix="Sample them first: `fivefold attempts CHECKPOINT --task NAME`",
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                problem = _read(json.loads(line))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CorruptFileError(
                    expected=f"a problem with its attempts in line {number} of `{path}`",
                    found=f"{type(error).__name__}: {error}"[:200],
                    fix="Copy the file again if it was cut, or sample anew",
                ) from error
            yield problem


def _write(problem: AttemptedProblem) -> dict[str, Any]:
    return {
        "id": problem.id,
        "row": problem.row,
        "attempts": [
            {
                "message": write_messages([answer.message])[0],
                "ids": list(answer.ids),
                "reward": answer.reward,
                "state": answer.state,
                "detail": answer.detail,
                "is_truncated": answer.is_truncated,
            }
            for answer in problem.answers
        ],
    }


def _read(line: dict[str, Any]) -> AttemptedProblem:
    answers = []
    for fields in line["attempts"]:
        state, reward = fields["state"], fields["reward"]
        if state not in STATES or (reward is None) == (state == "scored"):
            raise ConfigError(
                expected="a reward where the state is `scored`, and nowhere else",
                found=f"reward {reward} in state `{state}`",
                fix="Correct that attempt",
            )
        (message,) = read_messages([fields["message"]])
        answers.append(
            Answer(
                message,
                tuple(fields["ids"]),
                None if reward is None else float(reward),
                cast("State", state),
                str(fields["detail"]),
                bool(fields["is_truncated"]),
            )
        )
    if not isinstance(line["id"], str) or not isinstance(line["row"], dict):
        raise TypeError("`id` is text and `row` an object")
    return AttemptedProblem(line["id"], line["row"], tuple(answers))
