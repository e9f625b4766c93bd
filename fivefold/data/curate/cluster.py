"""Tasks on Slurm or Ray, by datatrove's executors for them, waited for to their end.

A recipe's next stage needs all tasks of the one before, so the launching process stays and looks.
Files lie on storage that all nodes share. Slurm: an array job that loads the pickled steps; its end
is read off `squeue`, success off the tasks' markers. Ray: remote tasks in this process's session.

Surprise: both of datatrove's executors take a failed task for an end; what did not leave its marker
is therefore an error here, with the last line of that task's log.
"""

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import DistributedEnvVars
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from fivefold.data.curate.cluster_config import ExecutorConfig
from fivefold.errors import ConfigError, FivefoldError


class ClusterError(FivefoldError, RuntimeError):
    """Tasks that did not finish on a cluster."""


def run_on_cluster(
    stage: str,
    steps: Sequence[PipelineStep],
    tasks: int,
    workers: int,
    log: Path,
    config: ExecutorConfig,
) -> None:
    """Run the unfinished tasks of a stage and wait for them, at most `workers` at once.

    Raises:
        ConfigError: Slurm's commands, or Ray, are not there.
        ClusterError: tasks did not finish.
    """
    logger.disable("datatrove")
    try:
        if config.kind == "slurm":
            _run_on_slurm(stage, steps, tasks, workers, log.absolute(), config)
        else:
            _run_on_ray(steps, tasks, workers, log.absolute(), config)
    finally:
        logger.enable("datatrove")
    missing = [task for task in range(tasks) if not (log / "completions" / f"{task:05d}").exists()]
    if missing:
        first = missing[0]
        raise ClusterError(
            expected=f"all {tasks} tasks of `{stage}` to finish on {config.kind}",
            found=f"{len(missing)} that did not, the first {first}: {_last_words(log, first)}",
            fix=f"Read `{log}`, correct the cause and run the same command again; finished tasks "
            "are not run again",
        )


def _run_on_slurm(
    stage: str,
    steps: Sequence[PipelineStep],
    tasks: int,
    workers: int,
    log: Path,
    config: ExecutorConfig,
) -> None:
    for command in ("sbatch", "squeue"):
        if shutil.which(command) is None:
            raise ConfigError(
                expected=f"Slurm's command `{command}`",
                found="none on this machine",
                fix="Run on a login node of the cluster, or set `executor.kind=local`",
            )
    # `launch_pickled_pipeline` of this very environment, whatever the node's shell finds first.
    scripts = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    executor = _SlurmExecutor(
        pipeline=list(steps),
        tasks=tasks,
        workers=workers,
        time=config.time,
        partition=config.partition,
        qos=config.qos,
        cpus_per_task=config.cpus,
        mem_per_cpu_gb=-(-config.memory_gb // config.cpus),
        job_name=f"fivefold-{stage}",
        env_command="\n".join(filter(None, (config.activate, scripts))),
        max_array_size=config.max_array_tasks,
        # The scheduler would run a failed task again and again; a relaunch does so once.
        requeue=False,
        with_srun=False,
        logging_dir=str(log),
        slurm_logs_folder=str(log / "slurm"),
    )
    executor.run()
    # Finished tasks leave no job behind; -1 is datatrove's word for that.
    for job in executor.jobs:
        while _is_queued(job):
            time.sleep(config.poll_seconds)


class _SlurmExecutor(SlurmPipelineExecutor):
    """Remembers its array jobs, and adds no job for statistics that nobody reads."""

    @property
    def jobs(self) -> list[str]:
        return [] if self.job_id in (None, -1) else [str(self.job_id)]

    def launch_merge_stats(self) -> None:
        """Leave it out: the accounts hold more."""

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """Say what is known without `scontrol`: a task is one process on one node."""
        return {
            "datatrove_node_ips": os.environ.get("SLURM_NODELIST", ""),
            "datatrove_cpus_per_task": str(self.cpus_per_task),
            "datatrove_mem_per_cpu": str(self.mem_per_cpu_gb),
            "datatrove_gpus_on_node": "0",
            "datatrove_executor": "SLURM",
        }


def _is_queued(job: str) -> bool:
    # Slurm answers with an error for a job that it has forgotten.
    result = subprocess.run(
        ("squeue", "--noheader", "--jobs", job), capture_output=True, text=True, check=False
    )
    if result.returncode and "nvalid job id" not in result.stderr:
        # The controller is away for a moment: the job is where it was.
        return True
    return bool(result.stdout.strip())


def _run_on_ray(
    steps: Sequence[PipelineStep], tasks: int, workers: int, log: Path, config: ExecutorConfig
) -> None:
    try:
        import ray  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ConfigError(
            expected="the package `ray` for `executor.kind=ray`",
            found=f"none that can be imported ({error})",
            fix="Run `pip install 'fivefold[ray]'`, or set `executor.kind=local`",
        ) from error
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(
            address=config.address or None,
            num_cpus=None if config.address else workers * config.cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        RayPipelineExecutor(
            pipeline=list(steps),
            tasks=tasks,
            workers=workers,
            cpus_per_task=config.cpus,
            mem_per_cpu_gb=config.memory_gb / config.cpus,
            logging_dir=str(log),
        ).run()
    finally:
        if begun_here:
            ray.shutdown()


def _last_words(log: Path, task: int) -> str:
    file = log / "logs" / f"task_{task:05d}.log"
    lines = file.read_text(errors="replace").strip().splitlines() if file.is_file() else []
    return lines[-1][:300] if lines else "no log"
