"""How long a task's problems are: rows and responses of a run that fit them.

Of an endless task the first problems are looked at, of a file all rows. Whether a later problem is
longer than these leave room for is for the stage `task` to see. Surprise: texts are measured in
characters first, and only the longest become tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fivefold.envs.file_task import FileTask
from fivefold.envs.task import Problem, Task, TaskError
from fivefold.errors import ConfigError
from fivefold.text.template import render, render_prompt
from fivefold.text.tokenizer import Tokenizer

_SEEN = 100
"""Problems whose solutions decide about thinking and lengths, unless a file has them all."""
_UNKNOWN_TOKENS = 128
"""Longest response where no solution is known."""
_ROW_TOKENS = 4096
"""Places of a row of RL where the model's context has as many."""


@dataclass(frozen=True)
class Sizes:
    """Lengths that the task's problems ask for."""

    new_tokens: int
    """Longest response."""
    solved_tokens: int
    """Row of the fine-tuning: a prompt with its solution, and then some."""
    row_tokens: int
    """Row of RL; samples are packed as narrow as they allow."""


def see_problems(task: Task, *, needs_solutions: bool) -> list[Problem]:
    """Return the problems that decide about thinking and lengths: of a file, all."""
    if isinstance(task, FileTask):
        problems = list(task.rows)
    else:
        count = _SEEN if task.size is None else min(task.size, _SEEN)
        problems = [task.problem(index) for index in range(count)]
    unsolved = next((p for p in problems if p.solution is None), None)
    if needs_solutions and unsolved is not None:
        raise TaskError(
            expected=f"a solution of `{unsolved.id}`, for `--sft`",
            found="none: the task does not know it",
            fix="Give `solution` in the task's rows, or leave `--sft` out",
        )
    return problems


def _choose_long(problems: Sequence[Problem]) -> list[Problem]:
    """Return the first problems, and those with the longest texts: rows of a file may be many."""

    def prompt_characters(problem: Problem) -> int:
        return sum(len(message.content) for message in problem.prompt)

    def solution_characters(problem: Problem) -> int:
        said = problem.solution
        return len(said.content) + len(said.reasoning_content or "") if said else 0

    longest = [
        problem
        for length in (prompt_characters, solution_characters)
        for problem in sorted(problems[_SEEN:], key=length)[-_SEEN:]
    ]
    return [*problems[:_SEEN], *longest]


def measure(problems: list[Problem], tokenizer: Tokenizer, limit: int, *, thinks: bool) -> Sizes:
    """Return how long responses and rows may be: powers of two, within the model's context."""
    prompts, answers = [0], list[int]()
    for problem in _choose_long(problems):
        prompt = len(render_prompt(problem.prompt, tokenizer, enable_thinking=thinks))
        prompts.append(prompt)
        if problem.solved is not None:
            answers.append(len(render(problem.solved, tokenizer, close=True).ids) - prompt)
    wanted = 2 * max(answers) if answers and thinks == does_think(problems) else _UNKNOWN_TOKENS
    new_tokens = max(1 << (wanted - 1).bit_length(), 16)
    room = limit - 1 - max(prompts)
    if room < 16:
        raise ConfigError(
            expected=f"prompts that leave room for an answer within the model's {limit} tokens",
            found=f"one of {max(prompts)} tokens",
            fix="Shorten the prompts, or train a checkpoint with a longer context",
        )
    new_tokens = min(new_tokens, room)
    # Prompts that are not seen here may be longer.
    solved_tokens = max(1 << (2 * max(prompts) + new_tokens).bit_length(), 128)
    row_tokens = max(min(limit, _ROW_TOKENS), solved_tokens)
    return Sizes(new_tokens, min(solved_tokens, limit), min(row_tokens, limit))


def longest_prompt(row_tokens: int, new_tokens: int, limit: int, *, setting: str) -> int:
    """Return the tokens of the longest prompt that leaves room for an answer of `new_tokens`.

    Answers must fit the model's context, of `limit` tokens, and a row of the trainer; `setting` is
    what the user calls `new_tokens`.

    Raises:
        ConfigError: there is no room for any prompt.
    """
    # A sample takes a place less in a row of the trainer than it has tokens.
    most = min(limit, row_tokens + 1)
    if new_tokens >= most:
        raise ConfigError(
            expected=f"`{setting}` that leave room for a prompt within {most} tokens, of the "
            "model's context and of a row of the trainer",
            found=str(new_tokens),
            fix="Lower it, or raise `rl.update.row_tokens` where that is shorter",
        )
    return most - new_tokens


def does_think(problems: Sequence[Problem]) -> bool:
    """Does any known solution hold thinking?"""
    return any(p.solution and p.solution.reasoning_content for p in problems)
