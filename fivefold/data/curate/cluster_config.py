"""Where the tasks of a recipe run: a pool of processes here, Slurm, or Ray.

Everything here is how, not what: a run may begin on one and go on with another.
"""

from typing import Literal

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError


class ExecutorConfig(Config):
    """An executor of datatrove; `local` needs no other field."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """Processes of this machine, array jobs of Slurm, or a cluster of Ray."""
    partition: str = ""
    """Slurm's partition; needed there."""
    time: str = "24:00:00"
    """Slurm's limit for a task."""
    qos: str = ""
    """Slurm's quality of service; empty: the cluster's own."""
    memory_gb: int = pydantic.Field(default=2, ge=1)
    """Memory of a task, GB; Slurm and Ray reserve it."""
    cpus: int = pydantic.Field(default=1, ge=1)
    """Processors of a task."""
    activate: str = ""
    """Shell command that brings this environment onto a node of Slurm; empty: none is needed."""
    max_array_tasks: int = pydantic.Field(default=1001, ge=1)
    """Most tasks of one array job, as the cluster's administrators set it."""
    poll_seconds: float = pydantic.Field(default=10.0, gt=0)
    """Time between two looks at Slurm's queue."""
    address: str = ""
    """Ray's cluster, for example `auto`; empty: one that is begun here for the run."""

    @pydantic.model_validator(mode="after")
    def _check_partition(self) -> "ExecutorConfig":
        if self.kind == "slurm" and not self.partition:
            raise ConfigError(
                expected="a name in `executor.partition`",
                found="none",
                fix="Set it to one that `sinfo` shows",
            )
        return self
