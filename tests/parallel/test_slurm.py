"""The Slurm template: directives that Slurm knows, and the command that it ends in."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from fivefold.recipes.launch import split_overrides

TEMPLATE = Path(__file__).resolve().parents[2] / "docs" / "train.sbatch"
OPTIONS = {
    "job-name": r"\w+",
    "nodes": r"\d+",
    "ntasks-per-node": "1",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "time": r"\d+:\d\d:\d\d",
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r"[\w%./-]+",
}
"""The options of sbatch that it uses, and what their values look like (Slurm's manual page)."""
JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "node[3-4]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
}


def test_directives_are_slurms_and_stand_before_the_commands() -> None:
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    places = [index for index, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert places
    assert max(places) < first
    found = {}
    for line in (lines[index] for index in places):
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        found[name] = value
    assert found.keys() == OPTIONS.keys()
    for name, value in found.items():
        assert re.fullmatch(OPTIONS[name], value), f"--{name}={value}"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Slurm's commands as far as the template needs them, and a torchrun that shows what it got."""
    scripts = {
        "scontrol": 'test "$1 $2 $3" = "show hostnames node[3-4]" && printf "node3\\nnode4\\n"',
        "srun": 'exec "$@"',
        "torchrun": f'exec {sys.executable} -c "import json, sys; print(json.dumps(sys.argv[1:]))"'
        ' "$@"',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_command_starts_the_recipe_on_all_machines(programs: Path) -> None:
    asked = ["glm5", "parallel.pp=4", "parallel.dp=4", "--run-dir", "runs/a b"]
    environment = {**os.environ, **JOB, "PATH": f"{programs}:{os.environ['PATH']}"}
    environment.pop("MASTER_PORT", None)
    done = subprocess.run(
        ["bash", str(TEMPLATE), *asked], env=environment, capture_output=True, text=True, check=True
    )
    options = get_args_parser().parse_args(json.loads(done.stdout))
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "8", 3)
    assert (options.rdzv_backend, options.rdzv_id) == ("c10d", "77")
    assert options.rdzv_endpoint == "node3:29500"
    assert options.module
    assert options.training_script == "fivefold"
    assert options.training_script_args == ["run", *asked]
    mesh, _ = split_overrides(asked[1:3])
    assert mesh.size == int(options.nnodes) * int(options.nproc_per_node)


def test_a_job_without_machines_ends(programs: Path) -> None:
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(TEMPLATE), "nano"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "SLURM_JOB_NODELIST" in done.stderr
