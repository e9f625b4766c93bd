"""The nano recipe's corpus stage, killed in the middle and launched again with other workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARTS = ("dclm_baseline", "glm5_code", "midtrain_long")


def command(run: Path, workers: int) -> list[str]:
    overrides = ["corpus.profile=fixture", "corpus.heldout_bytes=12000"]
    overrides += [f"corpus.{part}.workers={workers}" for part in PARTS]
    options = ["--until", "corpus", "--run-dir", str(run), "--threads", "1", "--device", "cpu"]
    return [sys.executable, "-m", "fivefold", "run", "nano", *overrides, *options]


def done(run: Path) -> int:
    """Return how many tasks of curation have finished."""
    return len(list(run.glob("corpus/state/curate/*/*/log/completions/*")))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_corpus_goes_on_with_other_workers_to_the_same_bytes(tmp_path: Path):
    digests, tasks = [], {}
    for name, kills in (("whole", ()), ("killed", (2, 12))):
        run = tmp_path / name
        for attempt, wanted in enumerate(kills):
            process = subprocess.Popen(
                command(run, 2 - attempt % 2),
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while done(run) < wanted:
                assert process.poll() is None, "the stage ended before it was killed"
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert not (run / "corpus" / "finished.json").exists()
            tasks[attempt] = {
                path: path.stat().st_mtime_ns
                for path in run.glob("corpus/state/curate/*/*/log/completions/*")
            }
        last = subprocess.run(command(run, 1), capture_output=True, text=True, check=False)
        assert last.returncode == 0, last.stderr
        marker = json.loads((run / "corpus" / "finished.json").read_text())
        digests.append(marker["output_digest"])
    assert digests[0] == digests[1]
    # The second launch went on: what the first one finished was not run again.
    assert len(tasks[0]) >= 2
    assert tasks[0].items() <= tasks[1].items()
