"""The task protocol: an endless, numbered supply of problems.

A task is a function of an index: the same index is the same problem, in any process and after any
restart, so that the whole state of a reader is one integer. Surprise: `id` and `group` differ. A
finite task comes round again, and the pass counts of a problem belong to its `id`; but rollouts
share a baseline only within one `group`, which an index has for itself.
"""

import json
from dataclasses import dataclass
from typing import Protocol

import xxhash

from fivefold.errors import FivefoldError
from fivefold.text.conversation import Conversation, Message, write_messages
from fivefold.verify.config import VerifierSpec


class TaskError(FivefoldError, RuntimeError):
    """A task that cannot give a problem: its generator raised, or made no sense."""


@dataclass(frozen=True)
class Problem:
    """One thing to solve."""

    id: str
    """Names the problem among all of its task; comes again with it."""
    group: str
    """Names this occurrence: rollouts of it form one group."""
    task: str
    """Name of the task, for metrics."""
    prompt: tuple[Message, ...]
    """What the agent reads; does not end with the assistant."""
    spec: VerifierSpec
    """How an answer is judged."""
    difficulty: float = 0.0
    """Greater is harder; comparable within a task only."""
    solution: Message | None = None
    """A turn that the verifier accepts, where the task knows one."""

    @property
    def solved(self) -> Conversation | None:
        """The prompt with its solution, for supervised training."""
        return None if self.solution is None else (*self.prompt, self.solution)


class Task(Protocol):
    """A supply of problems."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    @property
    def size(self) -> int | None:
        """Number of different problems; None: endless."""
        ...

    def problem(self, index: int) -> Problem:
        """Return problem `index`, from 0; beyond `size` they come again.

        Raises:
            TaskError: the problem cannot be made.
        """
        ...


def prompt_key(problem: Problem) -> bytes:
    """Return a digest of all that the policy reads of a problem."""
    text = json.dumps(write_messages(problem.prompt), ensure_ascii=False)
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def name_group(problem_id: str, index: int) -> str:
    """Return the group of the problem that stands at an index."""
    return f"{problem_id}#{index}"
