"""Configs of attempts at problems: which problems, how often, how they are sampled and judged."""

from typing import Annotated

import pydantic

from fivefold.config import Config, Runtime
from fivefold.envs.config import TaskConfig
from fivefold.serve.config import EngineConfig
from fivefold.verify.config import VerifierConfig

SourceName = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Becomes the name of files, and of a source of conversations."""


class AttemptedConfig(Config):
    """Problems of one task."""

    task: TaskConfig
    """Which task."""
    problems: int = pydantic.Field(default=200, gt=0)
    """Problems from `begin` on; of a finite task none comes twice."""
    begin: int = pydantic.Field(default=0, ge=0)
    """First problem."""


class AttemptsConfig(Config):
    """Several attempts at each problem of some tasks."""

    sources: dict[SourceName, AttemptedConfig] = pydantic.Field(min_length=1)
    """Tasks by the names of the files that are written."""
    attempts: int = pydantic.Field(default=8, gt=0)
    """Attempts at each problem: n, as far as they can be judged."""
    max_new_tokens: int = pydantic.Field(default=128, gt=0)
    """Longest answer."""
    temperature: float = pydantic.Field(default=1.0, gt=0)
    """Of the sampling."""
    thinks: bool = True
    """Do prompts open a thinking block?"""
    pass_reward: float = 1.0
    """Least reward that counts as a pass: k."""
    batch_problems: int = pydantic.Field(default=16, gt=0)
    """Problems that are sampled and judged at a time; a kill loses no more than these."""
    most_unjudged: float = pydantic.Field(default=0.5, ge=0, lt=1)
    """Share of the first batch's attempts that nobody may be able to judge before the stage stops:
    what fails there fails everywhere."""
    engine: EngineConfig = EngineConfig()
    verifier: VerifierConfig = VerifierConfig()
    """Limits of the verifier's workers."""
    shown: Runtime[int] = pydantic.Field(default=3, ge=0)
    """Problems of each source that the report shows."""


class DumpCountsConfig(Config):
    """(k, n) from the rollouts that a stage of RL has dumped, be it of another run."""

    path: str = pydantic.Field(min_length=1)
    """The directory of the dumps, `state/rollouts` of that stage."""
    source: str
    """Source of its prompts that is counted, and name of the file of counts."""
    aliases: tuple[str, ...] = ()
    """What that source may also be called there: the first that is found is counted."""
    dumps_hash: str = ""
    """Hash over names, sizes and times of the dumps, so that later ones are counted too."""
    pass_reward: float = 1.0
    """Least reward that counts as a pass: k."""
