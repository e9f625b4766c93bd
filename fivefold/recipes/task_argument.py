"""What `--task` and `--verifier` mean: a name, a generator of reasoning-gym, a file of one's own.

A file is told by its ending. Surprise: a Python file is imported to see whether it has a function
`reward`, which then judges what names no verifier; its faults are therefore the first to be told.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fivefold.config import validate
from fivefold.envs.config import (
    FileConfig,
    FunctionTaskConfig,
    GymConfig,
    ProceduralConfig,
    SkillName,
    TaskConfig,
)
from fivefold.envs.procedural import SKILLS
from fivefold.errors import ConfigError, MissingFileError
from fivefold.verify.target import load_target


@dataclass(frozen=True)
class OwnTask:
    """A task as the command line names it."""

    name: str
    """What metrics and directories call it."""
    config: TaskConfig
    file: Path | None = None
    """The file that it stands in."""


def read_task(named: str, *, verifier: str = "", levels: tuple[int, ...] = ()) -> OwnTask:
    """Return the task that a name or a file means.

    Raises:
        ConfigError: no such skill, or options that it has no use for.
        MissingFileError: no such file.
    """
    place, _, function = named.partition(".py:")
    path = Path(f"{place}.py" if function else named).expanduser()
    is_file = path.suffix in (".py", ".jsonl", ".json")
    if levels and named not in SKILLS:
        raise ConfigError(
            expected="`--levels` with one of Fivefold's own skills",
            found=f"the task `{named}`",
            fix="Leave them out; a task of one's own decides itself what it asks",
        )
    if verifier and not is_file:
        raise ConfigError(
            expected="`--verifier` with a task in a file",
            found=f"the task `{named}`, which brings its own",
            fix="Leave it out",
        )
    if is_file:
        return _read_file_task(path, function, verifier)
    if named.startswith("gym:"):
        return OwnTask(named.removeprefix("gym:"), GymConfig(name=named.removeprefix("gym:")))
    if named not in SKILLS:
        raise ConfigError(
            expected="a skill, `gym:NAME`, or a file of problems (`.jsonl`, `.py`)",
            found=repr(named),
            fix=f"Choose a skill among {', '.join(get_args(SkillName))}, or name a file",
        )
    most = range(1, min(SKILLS[named].levels, 3) + 1)
    fields = {"skill": named, "levels": levels or tuple(most)}
    return OwnTask(named, validate(ProceduralConfig, fields, where="task"))


def _read_file_task(path: Path, function: str, verifier: str) -> OwnTask:
    if not path.is_file():
        raise MissingFileError(
            expected=f"a task file at `{path}`", found="no such file", fix="Correct its path"
        )
    judge: Any = _read_verifier(verifier)
    if path.suffix == ".py":
        target = f"{path}:{function or 'problem'}"
        load_target(target)
        if judge is None and _has_reward(path):
            judge = {"kind": "function", "target": _anchor(f"{path}:reward")}
        config: TaskConfig = FunctionTaskConfig(target=target, verifier=judge)
        # Each function of a file is a task of its own, with a run directory of its own.
        name = path.stem if function in ("", "problem") else f"{path.stem}-{function}"
        return OwnTask(name, config, path)
    form = "gsm8k" if _is_gsm8k(path) else "rows"
    config = FileConfig(path=str(path), verifier=judge, form=form)
    return OwnTask(path.stem, config, path)


def _read_verifier(verifier: str) -> str | dict[str, Any] | None:
    """Return a verifier's name, a spec in JSON, or the spec of a reward function."""
    if not verifier:
        return None
    if verifier.startswith("{"):
        try:
            spec = json.loads(verifier)
        except ValueError as error:
            raise ConfigError(
                expected="a verifier's name, `FILE.py:FUNCTION`, or a spec in JSON",
                found=f"{verifier[:80]!r} ({error})",
                fix='Write for example `{"kind": "number", "answer_in": "boxed"}`',
            ) from error
        parts = spec.get("parts")
        for part in [spec, *(parts if isinstance(parts, list) else [])]:
            if isinstance(part, dict) and isinstance(part.get("target"), str):
                part["target"] = _anchor(part["target"])
        return spec
    if ":" not in verifier:
        return verifier
    return {"kind": "function", "target": _anchor(verifier)}


def _anchor(target: str) -> str:
    """Make a target's file absolute: rows that carry it are read from other directories."""
    place, _, function = target.rpartition(":")
    return f"{Path(place).expanduser().absolute()}:{function}" if place.endswith(".py") else target


def _has_reward(path: Path) -> bool:
    try:
        load_target(f"{path}:reward")
    except ConfigError:
        return False  # the file itself was imported before: it has no such function
    return True


def _is_gsm8k(path: Path) -> bool:
    """Does the file's first row have GSM8K's fields? Whatever else is wrong is told by the task."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and "question" in row and "prompt" not in row
