"""Resume state: everything that the next step depends on, in torch's distributed checkpoint format.

`state/step_N` holds the weights, the optimizer's state and, as JSON, the place in the data and the
counters. A directory appears under its name only when it is whole; the last two are kept, so that a
kill during a save costs one interval at most. Export for users is `models.convert`, not this.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from fivefold.artifact import atomic_write, read_json, remove, write_json
from fivefold.errors import CorruptFileError, StorageError
from fivefold.parallel.failure import is_lost_contact
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.saver import Saver, load_together
from fivefold.train.optimizer import HybridOptimizer

_KEPT = 2


class Weights(Protocol):
    """A model, or the part of one that a rank holds."""

    def state_dict(self) -> dict[str, Any]:
        """Return live tensors by the model's names."""
        ...


def save_state(
    directory: Path,
    step: int,
    model: Weights,
    optimizer: HybridOptimizer,
    progress: dict[str, Any],
    saver: Saver | None = None,
) -> None:
    """Write `directory/step_N` and drop all but the last two.

    With `saver`, all ranks write what they hold, and it may go on after the return.

    Raises:
        StorageError: the disk is full; earlier states stay.
    """
    target = directory / f"step_{step:08d}"
    if saver is not None:
        saver.save(_tensors(model, optimizer), target, progress, lambda: _drop_old(directory))
        return
    with atomic_write(target) as partial, _single_process():
        try:
            dcp.save(_tensors(model, optimizer), checkpoint_id=partial)
        except CheckpointException as error:
            raise StorageError(
                expected=f"to be able to write `{target}`",
                found=str(error).splitlines()[-1][:200],
                fix="Free space; the states before are kept and the same command goes on",
            ) from error
        write_json(partial / "progress.json", progress)
    _drop_old(directory)


def saved_steps(directory: Path) -> list[int]:
    """Return the steps of all whole states, ascending."""
    names = [path.name for path in directory.glob("step_*")]
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step_\d{8}", name))


def load_state(
    directory: Path, model: Weights, optimizer: HybridOptimizer, mesh: Mesh | None = None
) -> dict[str, Any] | None:
    """Load the newest state in place and return its progress; None if there is none.

    The state may come from any mesh; the first rank of this one chooses it.

    Raises:
        CorruptFileError: the newest state is damaged.
        RuntimeError: another rank is gone or does not answer, as `parallel.failure` tells it.
    """
    steps = saved_steps(directory)
    if mesh is not None:
        steps = mesh.share(steps)
    if not steps:
        return None
    newest = directory / f"step_{steps[-1]:08d}"
    progress = read_json(newest / "progress.json")
    try:
        if progress is None:
            raise FileNotFoundError("progress.json is missing or cut")
        tensors = _tensors(model, optimizer)
        if mesh is not None:
            load_together(tensors, newest, mesh)
        else:
            with _single_process():
                dcp.load(tensors, checkpoint_id=newest)
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        if is_lost_contact(error):
            raise
        # Of several ranks' errors the last line says what it was.
        line = -1 if isinstance(error, CheckpointException) else 0
        raise CorruptFileError(
            expected=f"a whole training state in `{newest}`",
            found=str(error).splitlines()[line][:200],
            fix="Delete that directory to resume from the state before it",
        ) from error
    return progress


def _drop_old(directory: Path) -> None:
    for outdated in saved_steps(directory)[:-_KEPT]:
        remove(directory / f"step_{outdated:08d}")


def _tensors(model: Weights, optimizer: HybridOptimizer) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@contextmanager
def _single_process() -> Iterator[None]:
    """Hush torch's note that it saves or loads without a process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*", category=UserWarning)
        yield
