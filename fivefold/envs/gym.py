"""Tasks of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), by name.

Item i of a data set there depends on its seed plus i. The scorer runs in a worker process and makes
the item again, since an item may hold what JSON cannot. Two surprises. Neighbouring seeds of the
library share all problems but one, so that ours are spread far apart. And its scorers give partial
credit that can be farmed (spelling backwards earns 0.375 for the word "nonsense"), hence
`is_strict`.
"""

import hashlib
from typing import Any

from fivefold.envs.config import GymConfig
from fivefold.envs.task import Problem, TaskError, name_group
from fivefold.errors import ConfigError
from fivefold.text.conversation import Message
from fivefold.verify.config import FunctionSpec
from fivefold.verify.extra import require_package

_SIZE = 2**31
"""Virtual length of a data set, so that no index is out of range; `options` may give another."""


class GymTask:
    """An endless supply from one of the library's generators."""

    size = None

    def __init__(self, config: GymConfig) -> None:
        """Make the generator.

        Raises:
            MissingPackageError: reasoning-gym is not installed.
            ConfigError: no such data set, or options that it refuses.
        """
        require_package("reasoning_gym", package="reasoning-gym", extra="rl", why="a gym task")
        self._config = config
        self.name = config.name
        """The data set's name."""
        self._seed = spread_seed(config.name, config.seed)
        self._dataset = _open(config.name, self._seed, config.options)

    def problem(self, index: int) -> Problem:
        """Return problem `index`.

        Raises:
            TaskError: the generator raised.
        """
        config = self._config
        try:
            entry = self._dataset[index]
        except Exception as error:
            raise TaskError(
                expected=f"a problem of `{config.name}` for index {index}",
                found=f"{type(error).__name__}: {error}",
                fix="Correct the options, or choose another data set",
            ) from error
        question = f"{entry['question']}\n{config.instruction}".strip()
        problem_id = f"{config.name}/{config.seed}/{index}"
        arguments = {
            "name": config.name,
            "seed": self._seed,
            "index": index,
            "options": config.options,
            "is_strict": config.is_strict,
        }
        return Problem(
            id=problem_id,
            group=name_group(problem_id, index),
            task=config.name,
            prompt=(Message(role="user", content=question),),
            spec=FunctionSpec(target="fivefold.envs.gym:score", arguments=arguments),
            solution=_solution(entry),
        )


def score(answer: str, arguments: dict[str, Any]) -> float:
    """Return the library's score of an answer; runs in a worker process."""
    dataset = _open(arguments["name"], arguments["seed"], arguments["options"])
    value = float(dataset.score_answer(answer, dataset[arguments["index"]]))
    return float(value >= 1.0) if arguments["is_strict"] else value


def spread_seed(name: str, seed: int) -> int:
    """Return a seed of 31 bits: two tasks of 10^5 problems share one with a chance below 10^-4.

    With an index added it stays below 2^32, which numpy's generators ask for.
    """
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _open(name: str, seed: int, options: dict[str, Any]) -> Any:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, seed=seed, **{"size": _SIZE, **options})
    except Exception as error:  # its configs check themselves with assertions, too
        raise ConfigError(
            expected=f"a data set `{name}` of reasoning-gym with options {options}",
            found=f"{type(error).__name__}: {error}",
            fix="Correct the name or the options; the library's gallery lists both",
        ) from error


def _solution(entry: dict[str, Any]) -> Message | None:
    answer = entry["answer"]
    return Message(role="assistant", content=answer) if isinstance(answer, str) else None
