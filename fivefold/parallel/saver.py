"""Training states of several ranks in one directory, in torch's distributed checkpoint format.

Every rank writes what it holds; tensors that all have are written once. A directory appears under
its name only when all of it is there, and the one before goes only afterwards, so that a crash at
any moment leaves a whole one. Asynchronous: the tensors are copied, training goes on while they are
written, and rank 0 gives the directory its name at the first step after that. All ranks must see
the same file system.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from fivefold.artifact import remove, storage_errors, write_json
from fivefold.errors import StorageError
from fivefold.parallel.mesh import Mesh

_SAVE_LIMIT = timedelta(hours=2)


@dataclass(frozen=True)
class _Pending:
    """A state that is being written."""

    future: Future[Any] | None
    """None: it is written."""
    target: Path
    progress: dict[str, Any]
    done: Callable[[], None]


class Saver:
    """Writes the states of a mesh, one at a time."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        # Its collectives run beside those of training.
        group = dist.new_group(backend="gloo", timeout=_SAVE_LIMIT)
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._pending: _Pending | None = None

    def save(
        self,
        tensors: dict[str, dict[str, Tensor]],
        target: Path,
        progress: dict[str, Any],
        done: Callable[[], None],
    ) -> None:
        """Start to write `target`; rank 0 calls `done` when it has its name.

        Waits for the state before. All ranks together.

        Raises:
            StorageError: the disk is full; earlier states stay.
        """
        self.finish()
        partial = _partial(target)
        if self._mesh.is_first:
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                remove(partial)
        self._mesh.wait()
        future = None
        with _told(target):
            if self._mesh.config.async_save:
                future = dcp.async_save(tensors, checkpoint_id=partial, process_group=self._group)
            else:
                dcp.save(tensors, checkpoint_id=partial, process_group=self._group)
        assert future is None or isinstance(future, Future)
        self._pending = _Pending(future, target, progress, done)
        self.poll()

    def poll(self) -> None:
        """Give a state that has been written since its name."""
        if self._pending is not None:
            future = self._pending.future
            if future is None or future.done():
                self._complete(self._pending)

    def finish(self) -> None:
        """Wait until the last state has its name.

        Raises:
            StorageError: it could not be written.
        """
        if self._pending is not None:
            self._complete(self._pending)

    def _complete(self, pending: _Pending) -> None:
        self._pending = None
        with _told(pending.target):
            if pending.future is not None:
                pending.future.result()
        # Rank 0 is done after all others, whose results it collects.
        if self._mesh.is_first:
            partial = _partial(pending.target)
            write_json(partial / "progress.json", pending.progress)
            if pending.target.exists():
                remove(pending.target)
            partial.replace(pending.target)
            pending.done()


def load_together(tensors: dict[str, dict[str, Tensor]], source: Path, mesh: Mesh) -> None:
    """Load a state of any mesh in place; all ranks together."""
    dcp.load(tensors, checkpoint_id=source, process_group=mesh.control)


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Turn a failed save into a StorageError that names the place."""
    try:
        yield
    except CheckpointException as error:
        remove(_partial(target))
        raise StorageError(
            expected=f"to be able to write `{target}`",
            found=str(error).splitlines()[-1][:200],
            fix="Free space; the states before are kept and the same command goes on",
        ) from error
