"""What `fivefold attempts` takes from a run of `fivefold rl`: the same problems, passed alike."""

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_tiny

from fivefold.data.attempts import PassCount, read_pass_counts
from fivefold.recipes.attempt_run import attempt_stages
from fivefold.recipes.task_argument import read_task
from fivefold.rl.attempt_stage import DumpCountsStage
from fivefold.rl.dump import write_dump
from fivefold.rl.rollout import Rollout

TASK = """
def other(index, seed):
    return {"prompt": f"Say {index}.", "answer": str(index), "verifier": "exact"}
"""


def rollout(source: str, reward: float) -> Rollout:
    mask = np.array([False, True])
    versions = np.where(mask, 0, -1).astype(np.int32)
    zeros = np.zeros(2, np.float32)
    group = f"{source}/other/3#7"
    return Rollout(np.arange(2), mask, zeros, versions, group, reward, source, advantages=zeros)


@pytest.mark.parametrize("source", ["other", "mine-other"], ids=["function", "chosen"])
@pytest.mark.parametrize(
    ("overrides", "passes"),
    [((), 1), (("attempts.pass_reward=0.4",), 2), (("counted.pass_reward=0.1",), 3)],
    ids=["plain", "attempts", "counted"],
)
def test_rollouts_of_a_function_s_run_are_found_and_passed_as_the_attempts(
    source: str, overrides: tuple[str, ...], passes: int, tmp_path: Path
) -> None:
    """Its prompts go by the function; those of problems that were chosen before, by the file."""
    (tmp_path / "mine.py").write_text(TASK)
    task = read_task(f"{tmp_path}/mine.py:other")
    assert task.name == "mine-other"
    rollouts = [rollout(source, reward) for reward in (0.0, 0.2, 0.5, 1.0)]
    write_dump(tmp_path / "rl/rl/state/rollouts", 1, rollouts, {}, kept=1)
    stages = attempt_stages(
        write_tiny(tmp_path / "checkpoint"),
        task,
        tmp_path / "run",
        counted=tmp_path / "rl",
        overrides=overrides,
    )
    (counted,) = (stage for stage in stages if isinstance(stage, DumpCountsStage))
    counted.execute({}, tmp_path / "out", None)  # pyright: ignore[reportArgumentType]
    found = read_pass_counts(tmp_path / "out" / "counts" / "mine-other.jsonl")
    assert found == {"other/3": PassCount(passes, 4)}
