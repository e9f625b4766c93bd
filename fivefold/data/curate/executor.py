"""Executors of datatrove without their console log: accounts tell what a run did.

Errors still come out as exceptions, from worker processes too. Progress is read off the markers
that finished tasks leave, so that it is right for any number of workers; the same markers make a
relaunch redo only what is missing, on whatever executor. See `cluster` for Slurm and Ray.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats
from loguru import logger

from fivefold.data.curate.cluster_config import ExecutorConfig
from fivefold.stage import Track

_LOOK_SECONDS = 0.2


class QuietExecutor(LocalPipelineExecutor):
    """Runs tasks in a pool of processes, or one after the other; finished ones are skipped."""

    def run(self) -> PipelineStats | None:
        """Run all tasks that have not been finished."""
        logger.disable("datatrove")
        try:
            return super().run()
        finally:
            logger.enable("datatrove")

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        # A worker process begins with its own logger.
        logger.disable("datatrove")
        return super()._run_for_rank(rank, local_rank, node_rank)


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
    """
    with _watch(stage, tasks, log / "completions", track):
        if config is None or config.kind == "local":
            QuietExecutor(
                pipeline=list(steps), tasks=tasks, workers=workers, logging_dir=str(log)
            ).run()
        else:
            from fivefold.data.curate.cluster import run_on_cluster

            run_on_cluster(stage, steps, tasks, workers, log, config)


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
