"""Any task from its config."""

from fivefold.envs.config import (
    FileConfig,
    FunctionTaskConfig,
    GymConfig,
    ProceduralConfig,
    TaskConfig,
)
from fivefold.envs.file_task import FileTask
from fivefold.envs.function_task import FunctionTask
from fivefold.envs.gym import GymTask
from fivefold.envs.procedural import ProceduralTask
from fivefold.envs.task import Task


def open_task(config: TaskConfig) -> Task:
    """Return the task, checked: files are read, functions imported, packages found.

    Raises:
        FivefoldError: whatever the task's own constructor says is wrong.
    """
    match config:
        case ProceduralConfig():
            return ProceduralTask(config)
        case GymConfig():
            return GymTask(config)
        case FileConfig():
            return FileTask(config)
        case FunctionTaskConfig():
            return FunctionTask(config)
