"""One recipe on three executors: the same bytes, whoever runs its tasks."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.data.curate.cluster import ClusterError
from fivefold.data.curate.cluster_config import ExecutorConfig
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.executor import WorkerError, run_tasks
from fivefold.data.curate.extract_step import ExtractText, ReadShards, WriteTask
from fivefold.data.curate.shard import find_shards
from fivefold.errors import ConfigError

TASKS = 3
SLURM = ExecutorConfig(kind="slurm", partition="cpu", time="01:00:00", poll_seconds=0.01)
# Runs an array's tasks one after the other, as a cluster of one slot would, before it answers.
SBATCH = """#!/bin/bash
set -e
for last; do [[ $last == --export=ALL,* ]] && export "${last#--export=ALL,}"; done
cp "$last" "$FAKE_SLURM/script"; echo "$*" >> "$FAKE_SLURM/calls"
range=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$last")
for rank in $(seq 0 "$range"); do
    SLURM_ARRAY_TASK_ID=$rank SLURM_JOB_ID=7 bash "$last" > "$FAKE_SLURM/out$rank" 2>&1 || true
done
echo "Submitted batch job 7"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which a stand-in for Slurm notes what it was given."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, content in (("sbatch", SBATCH), ("squeue", "#!/bin/bash\n")):
        (folder / name).write_text(content)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.html").write_text(f"<p>Page number {number} of the river mill.</p>")
    return folder


def steps(pages: Path, out: Path) -> list[PipelineStep]:
    config = ExtractConfig()
    return [
        ReadShards(find_shards([pages]), config, out / "reading", 30),
        ExtractText(config, out / "accounts", 30),
        WriteTask(out / "documents"),
    ]


def results(out: Path) -> dict[str, bytes]:
    files = [*(out / "documents").iterdir(), *(out / "accounts").rglob("*.json")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def run(
    pages: Path, out: Path, config: ExecutorConfig | None, workers: int = 2
) -> dict[str, bytes]:
    run_tasks("extract", steps(pages, out), TASKS, workers, out / "log", None, config)
    return results(out)


def test_slurm_gives_what_local_processes_give(tmp_path: Path, pages: Path, slurm: Path):
    expected = run(pages, tmp_path / "local", None, 1)
    assert len(expected) == 2 * TASKS
    assert run(pages, tmp_path / "cluster", SLURM) == expected
    script = (slurm / "script").read_text()
    for line in (
        "--partition=cpu",
        "--time=01:00:00",
        "--array=0-2%2",
        "--mem-per-cpu=2G",
        "--cpus-per-task=1",
        "--job-name=fivefold-extract",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "--requeue" not in script
    assert "--qos" not in script


def test_a_relaunch_on_slurm_runs_what_is_missing_of_a_local_run(
    tmp_path: Path, pages: Path, slurm: Path
):
    out = tmp_path / "out"
    expected = run(pages, out, None, 1)
    (out / "log" / "completions" / "00001").unlink()
    (out / "documents" / "00001.jsonl.zst").unlink()
    kept = (out / "documents" / "00000.jsonl.zst").stat().st_mtime_ns
    assert run(pages, out, SLURM) == expected
    assert "--array=0-0%2" in (slurm / "script").read_text()
    assert (out / "documents" / "00000.jsonl.zst").stat().st_mtime_ns == kept
    run(pages, out, SLURM)
    assert len((slurm / "calls").read_text().splitlines()) == 1


def test_a_task_that_fails_on_slurm_is_an_error_with_its_last_words(
    tmp_path: Path, pages: Path, slurm: Path
):
    (pages / "1.html").rename(pages / "1.tar")
    match = r"1 that did not, the first 1: .*CorruptFileError.*1\.tar"
    with pytest.raises(ClusterError, match=match):
        run(pages, tmp_path / "out", SLURM)
    assert (tmp_path / "out" / "log" / "completions" / "00002").exists()


def test_slurm_without_its_commands_is_named(
    tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="`sbatch`"):
        run(pages, tmp_path / "out", SLURM)
    with pytest.raises(ValueError, match="partition"):
        ExecutorConfig(kind="slurm")


class DieOnce(PipelineStep):
    """Kills the process of task 1, as the kernel does where memory is short, if nobody has yet."""

    name = "die"
    type = "test"

    def __init__(self, sign: Path):
        super().__init__()
        self.sign = str(sign)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        if rank == 1 and not Path(self.sign).exists():
            Path(self.sign).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from data or ()


@pytest.mark.timeout(60)
def test_a_killed_worker_is_an_error_that_names_its_task_and_the_run_goes_on(
    tmp_path: Path, pages: Path
):
    expected, out = run(pages, tmp_path / "alone", None, 1), tmp_path / "out"
    reader, *others = steps(pages, out)
    dying = [reader, DieOnce(tmp_path / "sign"), *others]
    with pytest.raises(WorkerError, match=r"`extract`.*tasks (0, )?1\b.*memory.*goes on"):
        run_tasks("extract", dying, TASKS, 2, out / "log")
    assert not (out / "log" / "completions" / "00001").exists()
    run_tasks("extract", dying, TASKS, 2, out / "log")
    assert results(out) == expected


RAY = """
import sys
from pathlib import Path
from test_curate_executor import ExecutorConfig, run

run(Path(sys.argv[1]), Path(sys.argv[2]), ExecutorConfig(kind="ray", memory_gb=1), 1)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_gives_what_local_processes_give(tmp_path: Path, pages: Path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    expected = run(pages, tmp_path / "local", None, 1)
    # In a process of its own: Ray's session leaves servers behind until its process ends.
    command = (sys.executable, "-c", RAY, str(pages), str(tmp_path / "cluster"))
    subprocess.run(command, check=True, cwd=Path(__file__).parent, timeout=280)
    assert results(tmp_path / "cluster") == expected
