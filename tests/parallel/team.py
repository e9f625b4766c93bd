"""Several processes under one test: started once for all files, given one case after another.

A case is a function of a test module, `case(world, *arguments)`, that every process runs on its own
rank; `Team.run` returns what the ranks returned, in order. A case that raises fails the test with
the traceback of every rank that raised; one that does not end within its time is killed, and the
next case starts new processes. Arguments and results are pickled: give tensors as such, not models.
"""

import faulthandler
import gc
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from fivefold.parallel.mesh import World

CASE_SECONDS = 60.0
"""Longest time of a case, from the call to the last rank's answer."""
START_SECONDS = 300.0
"""Longest time for a process to start."""

T = TypeVar("T")


class CaseError(AssertionError):
    """Some ranks failed in a case; the message has their tracebacks."""


class Team:
    """`size` processes in one gloo group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._members: list[tuple[Any, Connection]] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def run(
        self, case: Callable[..., T], *arguments: Any, seconds: float = CASE_SECONDS
    ) -> list[T]:
        """Run the case on every rank and return the ranks' results."""
        if not self._members:
            self._start()
        try:
            return self._answers(case, arguments, seconds)
        except BaseException:
            # A late answer would reach the next case.
            self.stop()
            raise

    def _answers(
        self, case: Callable[..., T], arguments: tuple[Any, ...], seconds: float
    ) -> list[T]:
        for _, connection in self._members:
            connection.send_bytes(pickle.dumps((case, arguments)))
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        rank_of = {connection: rank for rank, (_, connection) in enumerate(self._members)}
        until = time.monotonic() + seconds
        while len(results) + len(failures) < self.size:
            pending = [c for c, rank in rank_of.items() if rank not in results | failures]
            left = until - time.monotonic()
            # After a first failure the others can only wait for the failed rank.
            ready = wait(pending, timeout=max(min(left, 5) if failures else left, 0))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = rank_of[connection]
                try:
                    is_good, value = pickle.loads(connection.recv_bytes())
                except EOFError:
                    is_good, value = False, f"the process ended: {self._exit_code(rank)}"
                (results if is_good else failures)[rank] = value
        silent = sorted(set(range(self.size)) - set(results) - set(failures))
        if not failures and not silent:
            return [results[rank] for rank in range(self.size)]
        told = [f"rank {rank} of {self.size}:\n{text}" for rank, text in sorted(failures.items())]
        if silent:
            told.append(f"ranks {silent} gave no answer within {seconds:.0f} s")
        raise CaseError("\n".join(told))

    def stop(self) -> None:
        """End the processes; the next case starts new ones."""
        for process, connection in self._members:
            connection.close()
            process.kill()
            process.join()
        self._members = []
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _exit_code(self, rank: int) -> int | None:
        process, _ = self._members[rank]
        process.join(5)
        return process.exitcode

    def _start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fivefold-team-")
        store = str(Path(self._directory.name) / "store")
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_member, args=(rank, self.size, store, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._members.append((process, mine))
        # Imports take their time on a busy machine, and it is not the case's.
        for _, connection in self._members:
            assert connection.poll(START_SECONDS), "a process did not start"
            connection.recv_bytes()


def _member(rank: int, size: int, store_path: str, connection: Connection) -> None:
    """Live as one rank: join the group, then run cases until the test closes the pipe."""
    faulthandler.enable()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # A rank that speaks fills the test's output with the same line several times.
    sys.stdout = sys.stderr
    store = dist.FileStore(store_path, size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world = World(rank, size, store, torch.device("cpu"))
    connection.send_bytes(b"here")
    while True:
        try:
            case, arguments = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        _drop_groups()
        try:
            answer = (True, case(world, *arguments))
        except BaseException:  # noqa: BLE001 - the test sees it
            answer = (False, traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))


def _drop_groups() -> None:
    """Let go of the groups of the case before, which all ranks have left.

    Each has threads that wake a hundred times a second: of many cases' groups they fill a core.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    # What DTensor worked out for a mesh of as many ranks names the groups of that mesh.
    _clear_sharding_prop_cache()
    gc.collect()
