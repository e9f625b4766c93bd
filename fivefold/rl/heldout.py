"""Which problems of a task of one's own are held out: none whose prompt also trains.

A policy sees prompts. Two rows with the same one are the same problem to it, and a function that
draws from few questions asks far ahead what it asked before: a pass rate on those would be one of
training. Of a file, a prompt that occurs twice always trains. Of an endless task, problems far
ahead are taken whose prompts no batch of the run may hold.

Surprise: a task of few questions may have no others. Then these are examined, each once, and it is
said that they train.
"""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import xxhash

from fivefold.artifact import atomic_write
from fivefold.data.order import permuted_index
from fivefold.envs.file_task import FileTask
from fivefold.envs.row import write_row
from fivefold.envs.task import Problem, Task, prompt_key
from fivefold.rl.task_prompt import FAR_AHEAD
from fivefold.text.tool import parse_json

logger = logging.getLogger(__name__)

LEAST_ROWS = 5
"""Rows of a file from which on some are held out."""
_SPLIT_SEED = 7
_TRIES = 20
"""Problems that are looked at for each one that is held out."""


Row = list[object]
"""A row of the page's table."""


class HeldOut(NamedTuple):
    """What the stage `task` tells of the problems that it held out."""

    counts: Sequence[Row]
    """What, and how many."""
    warnings: Sequence[str]
    """What is unwise."""


class Ahead(NamedTuple):
    """Problems of an endless task to examine on."""

    problems: list[Problem]
    """With different prompts."""
    passed_over: int
    """Problems far ahead whose prompts train, or came before."""
    trains: bool
    """Do their prompts train, for no others were found?"""


def heldout_rows(task: FileTask, share: float, most: int) -> list[int]:
    """Return which usable rows of a file, counted from 0, are held out, ascending."""
    return choose_rows([prompt_key(problem) for problem in task.rows], share, most)


def choose_rows(keys: Sequence[Hashable], share: float, most: int) -> list[int]:
    """Return which of a file's rows are held out, ascending; none of a very short file.

    `keys` tell prompts apart; which rows they are depends on nothing else but the number of rows.
    """
    size = len(keys)
    if size < LEAST_ROWS or not share:
        return []
    wanted = min(max(round(size * share), 1), most)
    times = Counter(keys)
    order = (int(permuted_index(place, size, _SPLIT_SEED, 0)) for place in range(size))
    return sorted(itertools.islice((row for row in order if times[keys[row]] == 1), wanted))


def choose_ahead(
    task: Task, trained: Set[bytes], wanted: int, check: Callable[[Problem], None]
) -> Ahead:
    """Return `wanted` problems of an endless task, or as many as have prompts of their own.

    `trained` holds the keys of the prompts that may train; `check` is shown each problem.

    Raises:
        TaskError: the task cannot make a problem.
    """
    fresh, known, passed_over = dict[bytes, Problem](), dict[bytes, Problem](), 0
    for number in range(_TRIES * wanted):
        if len(fresh) == wanted:
            break
        problem = task.problem(FAR_AHEAD + number)
        key = prompt_key(problem)
        if key not in trained and key not in fresh:
            check(problem)
            fresh[key] = problem
            continue
        passed_over += 1
        if len(known) < wanted and key not in fresh:
            known.setdefault(key, problem)
    return Ahead(list((fresh or known).values()), passed_over, trains=not fresh)


def split_file(task: FileTask, share: float, most: int, out: Path) -> HeldOut:
    """Write the usable rows of a file as `train/` and `heldout/`, as they stand.

    A row without an id is given one of its content: its line in these files would be the line of
    another row once the file has grown.
    """
    unusable = {fault.line for fault in task.faults}
    lines = enumerate(task.path.read_bytes().split(b"\n"), start=1)
    rows = [line for number, line in lines if line.strip() and number not in unusable]
    heldout = set(heldout_rows(task, share, most))
    parts = {"train": [], "heldout": []}
    for number, row in enumerate(_name_rows(rows, task.name)):
        parts["heldout" if number in heldout else "train"].append(row)
    for name, part in parts.items():
        with atomic_write(out / name / task.path.name) as partial:
            partial.write_bytes(b"".join(row + b"\n" for row in part))
    logger.info("%d rows to train on, %d held out", len(parts["train"]), len(parts["heldout"]))
    times = Counter(prompt_key(problem) for problem in task.rows)
    repeated = sum(count for count in times.values() if count > 1)
    told = f"{repeated} rows share their prompt with another; none of them is held out"
    return HeldOut([["rows held out", len(heldout)]], [told] if repeated else [])


def _name_rows(rows: Sequence[bytes], name: str) -> Iterator[bytes]:
    """Yield rows with ids; equal ones are told apart by how often they came before."""
    times = Counter[bytes]()
    for row in rows:
        if "id" in parse_json(row.decode()):
            yield row
            continue
        content = row.strip()
        times[content] += 1
        again = f"-{times[content]}" if times[content] > 1 else ""
        row_id = json.dumps(f"{name}/{xxhash.xxh3_64_hexdigest(content)}{again}")
        yield b'{"id": ' + row_id.encode() + b", " + content.removeprefix(b"{")


def write_ahead(ahead: Ahead, wanted: int, path: Path) -> HeldOut:
    """Write an endless task's held-out problems as a file of rows."""
    ids = set[str]()
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        for problem in ahead.problems:
            row = write_row(problem)
            # A function may give all problems one `id`; a file may not.
            row["id"] = problem.group if problem.id in ids else problem.id
            ids.add(problem.id)
            file.write(json.dumps(row) + "\n")
    count, passed_over = len(ahead.problems), ahead.passed_over
    counts: list[Row] = [
        ["problems held out", count],
        ["passed over: their prompts train, or came before", passed_over],
    ]
    told = (
        f"{count}{'' if count == wanted else f' of {wanted}'} problems are held out; {passed_over} "
        "others were passed over, for their prompts train or came before"
    )
    if ahead.trains:
        told = (
            f"of {passed_over} problems ahead, none has a prompt that does not train; the {count} "
            "examined ones train, and their pass rate says nothing of new problems"
        )
    return HeldOut(counts, [told] if passed_over else [])
