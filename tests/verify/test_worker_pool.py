"""Workers against functions that raise, hang, crash and eat memory; reuse and replacement."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fivefold.errors import ConfigError
from fivefold.verify.config import VerifierConfig
from fivefold.verify.pool import WorkerPool

REWARD = str(Path(__file__).with_name("reward.py"))
ROOT = Path(__file__).resolve().parents[2]
CONFIG = VerifierConfig(limit_seconds=0.4, memory_bytes=1 << 30)


def target(name: str) -> str:
    return f"{REWARD}:{name}"


@pytest.fixture
def pool():
    pool = WorkerPool(CONFIG)
    yield pool
    pool.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_value_comes_back_and_process_is_reused(pool: WorkerPool) -> None:
    first = pool.run(target("process_id"), "", {})
    second = pool.run(target("process_id"), "", {})
    assert first.kind == second.kind == "returned"
    assert first.value == second.value != os.getpid()
    assert pool.run(target("length"), "abc", {"wanted": 6}).value == 0.5
    assert pool.counts == {"started": 1, "returned": 3}


def test_exception_is_reported_with_its_place_and_process_lives_on(pool: WorkerPool) -> None:
    before = pool.run(target("process_id"), "", {}).value
    raised = pool.run(target("raises"), "", {})
    assert raised.kind == "raised"
    assert "KeyError: 'no such field' (reward.py:" in raised.detail
    assert pool.run(target("exits"), "", {}).kind == "raised"
    assert pool.run(target("no_json"), "", {}).kind == "raised"
    assert pool.run(target("process_id"), "", {}).value == before


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("hangs", "timeout", "0.4 s"),
        ("hangs_in_c", "timeout", "0.4 s"),
        ("crashes", "crash", "code -11"),
        ("crashes", "crash", "a last word"),
        ("leaves", "crash", "code 0"),
        ("eats_memory", "memory", "1024 MiB"),
    ],
)
def test_failing_process_is_told_and_replaced(
    pool: WorkerPool, name: str, kind: str, words: str
) -> None:
    before = pool.run(target("process_id"), "", {}).value
    begin = time.monotonic()
    outcome = pool.run(target(name), "", {})
    assert (outcome.kind, words in outcome.detail) == (kind, True), outcome
    assert time.monotonic() - begin < 5
    after = pool.run(target("process_id"), "", {})
    assert after.kind == "returned"
    assert after.value != before
    assert not is_running(before)
    assert pool.counts["started"] == 2


def test_children_of_a_hanging_function_die_with_it(pool: WorkerPool, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert pool.run(target("hangs_with_child"), "", {"pid_file": str(pid_file)}).kind == "timeout"
    child = int(pid_file.read_text())
    for _ in range(100):
        if not is_running(child):
            return
        time.sleep(0.01)
    pytest.fail("the grandchild lives")


def test_waiting_for_a_process_is_not_part_of_the_limit(pool: WorkerPool) -> None:
    pool.run(target("process_id"), "", {})
    with ThreadPoolExecutor(4) as threads:
        calls = [
            threads.submit(pool.run, target("process_id"), "", {"seconds": 0.15}) for _ in range(4)
        ]
    # Together they took longer than the limit of one.
    assert {call.result().kind for call in calls} == {"returned"}
    assert pool.counts["started"] == 1


def test_two_workers_judge_at_the_same_time() -> None:
    pool = WorkerPool(CONFIG.model_copy(update={"workers": 2, "limit_seconds": 5.0}))
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(pool.run, target("process_id"), "", {"seconds": 0.3}) for _ in range(2)
        ]
    assert len({call.result().value for call in calls}) == 2
    pool.close()


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_name", "no/file.py:f"])
def test_function_that_cannot_be_imported_is_an_error(pool: WorkerPool, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such|No module|no file"):
        pool.run(name, "", {})
    assert pool.counts["unloadable"] == 1


def test_module_that_hangs_while_imported_is_an_error(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text("while True: pass\n")
    pool = WorkerPool(CONFIG.model_copy(update={"start_seconds": 0.7}))
    with pytest.raises(ConfigError, match=r"no result within 0\.7 s"):
        pool.run(f"{module}:f", "", {})
    pool.close()


def test_function_that_vanishes_later_is_an_outcome(pool: WorkerPool, tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text("def f(answer, arguments):\n    while True: pass\n")
    assert pool.run(f"{module}:f", "", {}).kind == "timeout"
    module.unlink()
    assert pool.run(f"{module}:f", "", {}).kind == "unloadable"


def test_program_without_a_main_guard_can_use_a_pool(tmp_path: Path) -> None:
    """A spawned child would import the program again, and start a pool in it."""
    program = tmp_path / "program.py"
    program.write_text(
        "from fivefold.verify.config import VerifierConfig\n"
        "from fivefold.verify.pool import WorkerPool\n"
        "pool = WorkerPool(VerifierConfig())\n"
        f"print(pool.run({target('length')!r}, 'ab', {{'wanted': 2}}).value)\n"
        "pool.close()\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "1.0\n"


def test_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Idle, it reads the end of its input; within a call, its watchdog strikes."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, threading\n"
        "from fivefold.verify.config import VerifierConfig\n"
        "from fivefold.verify.pool import WorkerPool\n"
        "pool = WorkerPool(VerifierConfig(limit_seconds=0.5))\n"
        f"print(pool.run({target('process_id')!r}, '', {{}}).value, flush=True)\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        f"pool.run({target('hangs')!r}, '', {{}})\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == -9
    pid = int(done.stdout)
    for _ in range(300):
        if not is_running(pid):
            return
        time.sleep(0.01)
    pytest.fail("the worker lives")
