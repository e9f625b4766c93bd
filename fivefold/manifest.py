"""What a run was made of: code, lock, seed, machine, versions, command.

`manifest.json` claims the run directory for its recipe and lets a reader repeat the run.
"""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fivefold import __version__

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pydantic", "resiliparse")


def describe_run(
    recipe: str, *, seed: int, device: str, threads: int, config_hash: str, command: Sequence[str]
) -> dict[str, Any]:
    """Return the manifest of a run that starts at this moment."""
    return {
        "recipe": recipe,
        "fivefold": __version__,
        "commit": _commit(),
        "config_hash": config_hash,
        "lock_hash": _lock_hash(),
        "seed": seed,
        "device": device,
        "threads": threads,
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """Return the commit of a source checkout, marked where files differ from it; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    # An installed package may lie inside another project's checkout, whose commit is not ours.
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _lock_hash() -> str | None:
    lock = Path(__file__).resolve().parent.parent / "constraints.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:16] if lock.is_file() else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
