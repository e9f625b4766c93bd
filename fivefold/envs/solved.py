"""Problems with their solutions as conversations to learn from: cold-start data for fine-tuning.

Before rewards can teach, some answers have to be right. GLM-5 fine-tunes on its experts' answers
(report, section 3.1); here the task itself knows a solution, with or without the steps that lead to
it. What is written is what `data.conversation_file` reads: a file a source, one conversation a
line, each with its split.

Surprise: a problem that comes round again is written once. A level with few instances would
otherwise weigh more the more problems are asked for; how often each is learned is for `sft.epochs`
to say.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fivefold.artifact import atomic_write
from fivefold.envs.config import ProceduralConfig, SolvedConfig
from fivefold.envs.open_task import open_task
from fivefold.envs.task import Problem, Task, TaskError, prompt_key
from fivefold.errors import ConfigError
from fivefold.text.conversation import write_messages


class Written(NamedTuple):
    """What became of a source."""

    train: int
    """Conversations to train on."""
    heldout: int
    """Conversations to validate on."""
    repeated: int
    """Problems that came again, and were left out."""
    shown: list[dict[str, str]]
    """A few conversations, for the report."""


def write_solved(name: str, config: SolvedConfig, directory: Path, shown: int) -> Written:
    """Write `directory/NAME.jsonl`.

    Raises:
        ConfigError: a finite task that has no problems left to hold out.
        TaskError: a problem whose solution the task does not know.
    """
    counts = {"train": 0, "heldout": 0, "repeated": 0}
    samples, seen = list[dict[str, str]](), set[tuple[str, bytes]]()
    with atomic_write(directory / f"{name}.jsonl") as partial, partial.open("w") as file:
        for split, problem in _problems(config):
            # Of two files, or of a function, different problems may have one id.
            key = problem.id, prompt_key(problem)
            if key in seen:
                counts["repeated"] += 1
                continue
            seen.add(key)
            counts[split] += 1
            messages = _conversation(problem, thinks=config.thinks)
            line = {"messages": messages, "split": split, "meta": {"id": problem.id}}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if split == "train" and len(samples) < shown:
                samples.append(_sample(name, messages))
    return Written(counts["train"], counts["heldout"], counts["repeated"], samples)


def _problems(config: SolvedConfig) -> Iterator[tuple[str, Problem]]:
    """Yield the problems to write, each with its split; held-out ones first."""
    task = open_task(config.task)
    heldout, begin = _heldout(config, task)
    for index in range(config.heldout_problems):
        yield "heldout", heldout.problem(begin + index)
    for index in range(config.problems):
        yield "train", task.problem(index)


def _heldout(config: SolvedConfig, task: Task) -> tuple[Task, int]:
    """Return the task of the held-out problems, and where they begin."""
    if config.heldout is not None:
        return open_task(config.heldout), 0
    if isinstance(config.task, ProceduralConfig) and config.task.split == "train":
        levels = {"split": "heldout", "problems_per_level": 0}
        return open_task(config.task.model_copy(update=levels)), 0
    needed = config.problems + config.heldout_problems
    if task.size is not None and config.heldout_problems and needed > task.size:
        raise ConfigError(
            expected=f"{needed} different problems in `{task.name}`, "
            f"{config.heldout_problems} of them held out",
            found=str(task.size),
            fix="Ask for fewer, or name other problems as `heldout`",
        )
    return task, config.problems


def _conversation(problem: Problem, *, thinks: bool) -> list[dict]:
    if problem.solution is None:
        raise TaskError(
            expected=f"a solution of `{problem.id}`",
            found="none: the task does not know it",
            fix="Give `solution` in the task's rows, or leave the task to RL",
        )
    solution = problem.solution
    if not thinks:
        solution = solution.model_copy(update={"reasoning_content": None})
    return write_messages((*problem.prompt, solution))


def _sample(name: str, messages: list[dict]) -> dict[str, str]:
    *before, answer = messages
    thinking = answer.get("reasoning_content")
    text = answer["content"] if thinking is None else f"({thinking}) {answer['content']}"
    return {
        "label": name,
        "prompt": "\n".join(message["content"] for message in before) + "\n",
        "text": text,
    }
