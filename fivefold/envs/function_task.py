"""A Python function of one's own as a task: `function(index, seed)` returns a row.

The function runs in this process, for making a problem is part of the run; the reward function that
its row may name runs in a worker (`fivefold.verify`). It should depend on its two arguments alone:
that is what makes a run repeatable and a restart exact.
"""

from dataclasses import replace
from pathlib import Path

from fivefold.envs.config import FunctionTaskConfig
from fivefold.envs.row import read_row
from fivefold.envs.task import Problem, TaskError, name_group
from fivefold.errors import ConfigError
from fivefold.verify.target import load_target

_USUAL_NAME = "problem"


class FunctionTask:
    """Problems that a function makes."""

    def __init__(self, config: FunctionTaskConfig) -> None:
        """Import the function.

        Raises:
            ConfigError: it cannot be imported.
        """
        self._config = config
        self._function = load_target(config.target)
        place, _, function = config.target.rpartition(":")
        self.name = function if function != _USUAL_NAME else _name_of(place)
        """The function's name; that of its file or module if it is just `problem`."""
        self.size = config.size
        """As configured."""

    def problem(self, index: int) -> Problem:
        """Return the problem that the function makes for an index.

        Raises:
            TaskError: the function raised, or returned no usable row.
        """
        config = self._config
        number = index if config.size is None else index % config.size
        try:
            row = self._function(number, config.seed)
        except Exception as error:
            raise TaskError(
                expected=f"a row from `{config.target}` for index {number}",
                found=f"{type(error).__name__}: {error}",
                fix="Correct the function; it is called as `function(index, seed)`",
            ) from error
        where = f"{self.name}({number}, {config.seed})"
        try:
            problem = read_row(
                row, task=self.name, index=number, where=where, verifier=config.verifier
            )
        except ConfigError as error:
            raise TaskError(expected=error.expected, found=error.found, fix=error.fix) from error
        return replace(problem, group=name_group(problem.id, index))


def _name_of(place: str) -> str:
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
