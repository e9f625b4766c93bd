"""Executors of datatrove without their console log: accounts tell what a run did.

Errors still come out as exceptions, from worker processes too. Progress is read off the markers
that finished tasks leave, so that it is right for any number of workers; the same markers make a
relaunch redo only what is missing, on whatever executor. See `cluster` for Slurm and Ray.

Surprise: datatrove's pool of processes waits for ever for the task of a process that was killed;
the pool here breaks instead.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats
from loguru import logger

from fivefold.data.curate.cluster_config import ExecutorConfig
from fivefold.errors import FivefoldError
from fivefold.stage import Track

_LOOK_SECONDS = 0.2
_NAMED_TASKS = 20


class WorkerError(FivefoldError, RuntimeError):
    """A worker process that died before its task was done."""


class QuietExecutor(LocalPipelineExecutor):
    """Runs tasks in a pool of processes, or one after the other; finished ones are skipped."""

    def run(self) -> PipelineStats | None:
        """Run all tasks that have not been finished.

        Raises:
            BrokenProcessPool: a worker process died.
        """
        logger.disable("datatrove")
        try:
            if self.workers == 1:
                return super().run()
            return self._run_in_processes()
        finally:
            logger.enable("datatrove")

    def _run_in_processes(self) -> None:
        context = multiprocessing.get_context(self.start_method)
        theirs, ours = context.Pipe(duplex=False)
        # `ours` closes first, so that an error ends at once the tasks that are still running.
        with theirs, ProcessPoolExecutor(self.workers, context, _end_with, (theirs,)) as pool, ours:
            ranks = self.get_incomplete_ranks(range(self.tasks))
            for done in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                done.result()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        # A worker process begins with its own logger.
        logger.disable("datatrove")
        return super()._run_for_rank(rank, local_rank, node_rank)


def _end_with(launcher: Connection) -> None:
    """End this process when the other end of a pipe closes, as it does when its owner dies."""

    def wait() -> None:
        launcher.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_tasks(
    stage: str,
    steps: Sequence[PipelineStep],
    tasks: int,
    workers: int,
    log: Path,
    track: Track | None = None,
    config: ExecutorConfig | None = None,
) -> None:
    """Run the tasks of a stage that have not been finished; `log` holds their markers.

    Raises:
        ConfigError: Slurm's commands, or Ray, are not there.
        ClusterError: tasks did not finish on Slurm or Ray.
        WorkerError: a worker process died.
    """
    # datatrove's file systems remember what a relative path meant when they first saw it.
    log = log.absolute()
    with _watch(stage, tasks, log / "completions", track):
        if config is None or config.kind == "local":
            executor = QuietExecutor(
                pipeline=list(steps), tasks=tasks, workers=workers, logging_dir=str(log)
            )
            try:
                executor.run()
            except BrokenProcessPool as error:
                raise _worker_error(stage, executor.get_incomplete_ranks(range(tasks))) from error
        else:
            from fivefold.data.curate.cluster import run_on_cluster

            run_on_cluster(stage, steps, tasks, workers, log, config)


def _worker_error(stage: str, missing: Sequence[int]) -> WorkerError:
    shown = ", ".join(map(str, missing[:_NAMED_TASKS]))
    return WorkerError(
        expected=f"the worker processes of `{stage}` to live until their tasks are done",
        found=f"one that died; not finished: tasks {shown}"
        + (f" and {len(missing) - _NAMED_TASKS} more" if len(missing) > _NAMED_TASKS else ""),
        fix="Look for memory first: the kernel kills processes that need too much (see `dmesg`), "
        "and fewer `workers` need less. The same command goes on, and finished tasks are not run "
        "again",
    )


@contextmanager
def _watch(stage: str, tasks: int, markers: Path, track: Track | None) -> Iterator[None]:
    if track is None:
        yield
        return
    ended = threading.Event()
    with track(stage, tasks, "tasks") as line:

        def look() -> None:
            shown = 0
            while True:
                is_last = ended.wait(_LOOK_SECONDS)
                found = sum(1 for _ in markers.iterdir()) if markers.is_dir() else 0
                line.advance(found - shown)
                shown = found
                if is_last:
                    return

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
