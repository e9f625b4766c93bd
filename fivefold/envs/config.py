"""Task configs: which problems, from where, in which order."""

from typing import Annotated, Any, Literal

import pydantic

from fivefold.config import Config
from fivefold.verify.config import TARGET_PATTERN

SkillName = Literal[
    "copy", "reverse", "last_letters", "count_letter", "add", "sort", "compare", "largest"
]
Split = Literal["train", "heldout"]


class ProceduralConfig(Config):
    """One of Fivefold's own generators."""

    kind: Literal["procedural"] = "procedural"
    skill: SkillName
    """What is asked."""
    levels: tuple[int, ...] = pydantic.Field(default=(1, 2, 3), min_length=1)
    """Levels of difficulty, easiest first; each from 1."""
    problems_per_level: int = pydantic.Field(default=0, ge=0)
    """Problems after which the next level joins those before it; 0: all from the beginning."""
    split: Split = "train"
    """A fifth of all instances of each level is never among `train`."""
    seed: int = 0
    """Order of the instances; does not move any from one split to the other."""


class GymConfig(Config):
    """A generator of reasoning-gym, by its name there (needs the package)."""

    kind: Literal["gym"] = "gym"
    name: str = pydantic.Field(min_length=1)
    """Name of the data set, for example `chain_sum`."""
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Fields of the generator's own config."""
    instruction: str = "Give the final answer alone after thinking."
    """Added to the question; empty: nothing."""
    is_strict: bool = True
    """Reward 1 for the full score and 0 otherwise: partial scores can be farmed."""
    seed: int = 0
    """Seed; other seeds give other problems."""


class FileConfig(Config):
    """A JSONL file of problems."""

    kind: Literal["file"] = "file"
    path: str = pydantic.Field(min_length=1)
    """The file; one object a line."""
    form: Literal["rows", "gsm8k"] = "rows"
    """Rows as in `fivefold.envs.row`, or GSM8K's `question` and `answer` (with `####`)."""
    verifier: str | dict[str, Any] | None = None
    """Verifier of rows that name none."""
    instruction: str = ""
    """Added to the last message of each prompt; gsm8k has one of its own."""
    order: Literal["shuffled", "file", "rising"] = "shuffled"
    """A new permutation each time round, as in the file, or by `difficulty`."""
    malformed: Literal["refuse", "skip"] = "refuse"
    """An unusable row ends the run, or is left out; a warning counts them."""
    seed: int = 0
    """Seed of the permutation."""


class FunctionTaskConfig(Config):
    """A Python function that makes problems: `function(index, seed)` returns a row."""

    kind: Literal["function"] = "function"
    target: str = pydantic.Field(pattern=TARGET_PATTERN)
    """`module:function` or `path/file.py:function`."""
    verifier: str | dict[str, Any] | None = None
    """Verifier of rows that name none."""
    size: int | None = pydantic.Field(default=None, gt=0)
    """Number of different problems; None: endless."""
    seed: int = 0
    """Handed to the function."""


TaskConfig = Annotated[
    ProceduralConfig | GymConfig | FileConfig | FunctionTaskConfig,
    pydantic.Field(discriminator="kind"),
]


class SolvedConfig(Config):
    """Problems of one task with their solutions, as conversations to learn from."""

    task: TaskConfig
    """Which problems."""
    problems: int = pydantic.Field(gt=0)
    """Conversations to train on: the task's first problems."""
    heldout: TaskConfig | None = None
    """Problems to validate on; None: the held-out split of a skill, else those that follow."""
    heldout_problems: int = pydantic.Field(default=50, ge=0)
    """Conversations to validate on."""
    thinks: bool = True
    """Keep the steps of a solution as thinking; False: answers at once."""


class TasksConfig(Config):
    """What the stage `tasks` writes: a file of conversations for each source."""

    sources: dict[str, SolvedConfig] = pydantic.Field(min_length=1)
    """Sources of conversations by their names."""
    shown: int = pydantic.Field(default=2, ge=0)
    """Conversations of each source that the report shows."""
