"""torchrun restarts a run whose rank was killed, and the run goes on as if nothing had been."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from test_launch import command, losses, rank_process, run_to_end, wait_for_step
from torch.distributed import HashStore, Store, TCPStore

from fivefold.parallel.failure import RankError
from fivefold.parallel.launch import agree_on_start

pytestmark = pytest.mark.dist

MESH = ("parallel.dp=2", "parallel.async_save=false")
INTERVAL_STEPS = 2
"""`pretrain.checkpoint_steps` of the short recipe."""


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], Popen[str]]]:
    """Start a command that is killed at the end of the test, if it still runs."""
    running: list[Popen[str]] = []

    def begin(arguments: list[str]) -> Popen[str]:
        running.append(Popen(arguments, stderr=PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def start_together(store: Store, ranks: list[int], size: int) -> list[str]:
    """Start some of `size` ranks; return the names that they agree on."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: agree_on_start(store, rank, size, 10), ranks))


def test_each_start_has_a_name_of_its_own() -> None:
    store = HashStore()
    first = start_together(store, [0, 1, 2], 3)
    # A rank that called and was gone before the first one came.
    store.set("call/1", "nobody")
    second = start_together(store, [2, 0, 1], 3)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_a_rank_that_does_not_start_is_named() -> None:
    store = HashStore()
    start_together(store, [0, 1, 2], 3)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(agree_on_start, store, 1, 3, 10)
        # Its call of the start before is still there.
        with pytest.raises(RankError, match="no call from rank 2"):
            agree_on_start(store, 0, 3, 0.3)
        assert other.result()


def test_the_first_rank_that_does_not_start_is_named() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RankError, match="no answer from rank 0"):
        agree_on_start(store, 1, 2, 0.3)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_torchrun_restarts_a_run_with_a_killed_rank(
    tmp_path: Path, start: Callable[[list[str]], Popen[str]]
) -> None:
    undisturbed, restarted = tmp_path / "undisturbed", tmp_path / "restarted"
    run_to_end(command(undisturbed, *MESH, ranks=2))
    shutil.copytree(undisturbed, restarted)
    shutil.rmtree(restarted / "pretrain")
    (restarted / "metrics.jsonl").unlink()
    (restarted / "log.txt").unlink()
    arguments = command(restarted, *MESH, ranks=2)
    place = arguments.index("--standalone")
    process = start([*arguments[:place], "--max-restarts", "1", *arguments[place:]])
    wait_for_step(restarted, 6, process)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told[-4000:]
    reached, resumed = read_log(restarted / "log.txt")
    # A state every two steps: no more than these are run again.
    assert reached - INTERVAL_STEPS <= resumed <= reached
    assert "no answer from rank 1" in " ".join(told.split())
    # The same mesh, the same order of sums: the same losses to the last bit.
    assert losses(restarted) == losses(undisturbed)


def read_log(path: Path) -> tuple[int, int]:
    """Return the step after which a rank was missed, and the one at which the run went on."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    failed = text.split("after step ")[1].split(",")[0].split(":")[0]
    went_on = text.split("goes on at step ")[1].split(",")[0]
    return int(failed), int(went_on)
