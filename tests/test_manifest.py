"""The record of what a run was made of."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fivefold
from fivefold import manifest

ROOT = Path(fivefold.__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    return manifest.describe_run(
        "nano", seed=3, device="cpu", threads=2, config_hash="abc", command=["fivefold", "run"]
    )


def test_manifest_holds_what_repeats_the_run() -> None:
    described = describe()
    assert described["recipe"] == "nano"
    assert described["seed"] == 3
    assert described["config_hash"] == "abc"
    assert described["command"] == ["fivefold", "run"]
    assert described["fivefold"] == fivefold.__version__
    assert described["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert described["versions"]["pydantic"]
    assert described["hardware"]["memory_bytes"] > 2**20
    assert described["hardware"]["cpu"]
    started = datetime.fromisoformat(described["started"])
    assert abs(datetime.now(UTC) - started) < timedelta(minutes=1)
    assert json.loads(json.dumps(described)) == described


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a source checkout")
def test_commit_is_that_of_the_checkout() -> None:
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert describe()["commit"].removesuffix("+changes") == head.stdout.strip()


def test_installed_package_takes_no_commit_of_a_checkout_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "one"], check=True)
    module = tmp_path / "lib" / "site-packages" / "fivefold" / "manifest.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(manifest, "__file__", str(module))
    assert describe()["commit"] is None


def test_missing_git_leaves_the_commit_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe()["commit"] is None


def test_lock_hash_follows_the_pinned_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "fivefold" / "manifest.py"))
    assert describe()["lock_hash"] is None
    hashes = set()
    for pins in ("numpy==2.0\n", "numpy==2.1\n"):
        (tmp_path / "constraints.txt").write_text(pins)
        hashes.add(describe()["lock_hash"])
    assert len(hashes) == 2
    assert None not in hashes
