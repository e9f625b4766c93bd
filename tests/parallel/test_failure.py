"""Whose fault an error is, and what a rank that is lost while a state is read is reported as."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from spread_training import Run
from team import CaseError, Team
from tiny_training import Setting
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError
from torch.distributed.checkpoint import FileSystemReader

from fivefold.errors import CorruptFileError
from fivefold.parallel import failure
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.failure import RankError, is_lost_contact, tell_failures
from fivefold.parallel.mesh import Mesh, World

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3763, "

LOST = [
    DistBackendError(
        NCCL + "remote process exited or there was a network error, NCCL version 2.28.8\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.\nLast error:\nsocketProgressOpt: Call to recv failed"
    ),
    DistBackendError(
        NCCL + "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or "
        "device error."
    ),
    DistBackendError(
        NCCL + "internal error - please report this issue to the NCCL developers\n"
        "ncclInternalError: Internal check failed.\nLast error:\n"
        "Net : Connection closed by remote peer node7<50260>"
    ),
    DistBackendError(
        "NCCL communicator was aborted on rank 3.  Original reason for failure was: [Rank 3] "
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=59958, OpType=ALLREDUCE, "
        "NumelIn=8388608, NumelOut=8388608, Timeout(ms)=600000) ran for 600077 milliseconds "
        "before timing out."
    ),
    DistBackendError(
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, "
        "OpType=ALLGATHER, NumelIn=1, NumelOut=2, Timeout(ms)=600000) ran for 600001 milliseconds "
        "before timing out."
    ),
    DistBackendError("NCCL timeout in: ProcessGroupNCCL.cpp:2512"),
    DistBackendError(
        "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d "
        "key-value store by key '0', but store->get('0') got error: wait timeout after 600000ms"
    ),
    DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    DistStoreError("wait timeout after 300ms, keys: /failure/1"),
    RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"),
    RuntimeError("Timed out waiting 10000ms for recv operation to complete"),
]

OWN = [
    DistBackendError(
        NCCL + "invalid usage, NCCL version 2.28.8\n"
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
    ),
    DistBackendError(
        NCCL + "unhandled cuda error, NCCL version 2.28.8\n"
        "ncclUnhandledCudaError: Call to CUDA function failed."
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ValueError("a deadline timed out"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[-40:])
def test_error_of_a_lost_rank_is_recognised(error: Exception) -> None:
    assert is_lost_contact(error)


@pytest.mark.parametrize("error", OWN, ids=lambda error: str(error)[-40:])
def test_own_error_is_a_cause(error: Exception) -> None:
    assert not is_lost_contact(error)


def load_with_a_lost_rank(world: World, directory: Path, ending: str) -> None:
    """Save a state and load it; rank 1 is killed, hangs or finds damage while it reads."""
    failure._NOTE_SECONDS = 0.5
    mesh = Mesh(ParallelConfig(dp=2, async_save=False, timeout_seconds=2), world)
    run = Run(mesh, Setting())
    run.save(directory, 7)
    mesh.place = "in stage `x`"
    if world.rank == 1:
        setattr(FileSystemReader, "read_data", {"killed": _die, "hangs": _hang}[ending])  # noqa: B010 - of another type
    with tell_failures(mesh):
        run.load(directory)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(*_: object) -> None:
    time.sleep(60)


@pytest.mark.dist
@pytest.mark.parametrize("ending", ["killed", pytest.param("hangs", marks=pytest.mark.slow)])
def test_rank_that_is_lost_while_a_state_is_read_is_named(tmp_path: Path, ending: str) -> None:
    team = Team(2)
    try:
        with pytest.raises(CaseError) as caught:
            team.run(load_with_a_lost_rank, tmp_path, ending, seconds=120)
    finally:
        team.stop()
    told = " ".join(str(caught.value).split())
    assert RankError.__name__ in told
    assert "no answer from rank 1 in stage `x`, while loading `step_00000007`" in told
    assert CorruptFileError.__name__ not in told


def load_damaged(world: World, directory: Path) -> str:
    """Save a state, cut the files of rank 1, and load it."""
    run = Run(Mesh(ParallelConfig(dp=2, async_save=False), world), Setting())
    run.save(directory, 7)
    if world.rank == 1:
        for path in directory.glob("step_*/__1_*"):
            path.write_bytes(path.read_bytes()[:100])
    try:
        run.load(directory)
    except CorruptFileError as error:
        return str(error)
    return "loaded"


@pytest.mark.dist
def test_damage_is_still_damage_on_every_rank(pair: Team, tmp_path: Path) -> None:
    for told in pair.run(load_damaged, tmp_path):
        assert "a whole training state" in told
        assert "CheckpointException" not in told
