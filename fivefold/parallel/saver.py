"""Training states of several ranks in one directory, in torch's distributed checkpoint format.

Every rank writes what it holds; tensors that all have are written once. A directory appears under
its name only when all of it is there, and the one before goes only afterwards, so that a crash at
any moment leaves a whole one. Asynchronous: the tensors are copied, training goes on while they are
written, and the thread that writes on rank 0 gives the directory its name as soon as all ranks have
written, whatever training does then: a kill costs the steps since the state was due, and only while
it is being written those of the interval before. All ranks must see the same file system.
"""

import functools
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
class _State:
    """A state that gets its name when all of it is there."""

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
        self._pending: tuple[_State, Future[None]] | None = None

    def save(
        self,
        tensors: dict[str, dict[str, Tensor]],
        target: Path,
        progress: dict[str, Any],
        done: Callable[[], None],
    ) -> None:
        """Start to write `target`; rank 0 calls `done`, maybe in a thread, when it has its name.

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
        state = _State(target, progress, done)
        with _told(target):
            if not self._mesh.config.async_save:
                dcp.save(tensors, checkpoint_id=partial, process_group=self._group)
                self._name(state)
                return
            written = dcp.async_save(tensors, checkpoint_id=partial, process_group=self._group)
        assert isinstance(written, Future)
        self._pending = state, _then(written, functools.partial(self._name, state))

    def poll(self) -> None:
        """Raise what a save that has ended since has failed with.

        Raises:
            StorageError: it could not be written.
        """
        if self._pending is not None and self._pending[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait until the last state has its name.

        Raises:
            StorageError: it could not be written.
        """
        if self._pending is not None:
            (state, named), self._pending = self._pending, None
            with _told(state.target):
                named.result()

    def _name(self, state: _State) -> None:
        # Rank 0 is done after all others, whose results it collects.
        if not self._mesh.is_first:
            return
        with storage_errors(state.target):
            partial = _partial(state.target)
            write_json(partial / "progress.json", state.progress)
            if state.target.exists():
                remove(state.target)
            partial.replace(state.target)
            state.done()


def _then(first: Future[Any], follow: Callable[[], None]) -> Future[None]:
    """Let `follow` run in the thread of `first` after it; fails with what either failed with."""
    ended: Future[None] = Future()

    def go_on(_: Future[Any]) -> None:
        try:
            first.result()
            follow()
        except BaseException as error:  # noqa: BLE001 - raised where `ended` is waited for
            ended.set_exception(error)
        else:
            ended.set_result(None)

    first.add_done_callback(go_on)
    return ended


def load_together(tensors: dict[str, dict[str, Tensor]], source: Path, mesh: Mesh) -> None:
    """Load a state of any mesh in place; all ranks together.

    A rank that keeps the others waiting beyond `parallel.timeout_seconds` is missed here, and the
    report of a failure says so.
    """
    place, limit = mesh.place, timedelta(seconds=mesh.config.timeout_seconds)
    mesh.place = f"{place}, while loading `{source.name}`"
    group = dist.new_group(backend="gloo", timeout=limit)
    assert isinstance(group, dist.ProcessGroup)
    dcp.load(tensors, checkpoint_id=source, process_group=group)
    dist.destroy_process_group(group)
    mesh.place = place


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
