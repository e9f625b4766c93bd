"""Joining the processes that torchrun started: rank, store, backend, device.

The only place of the room that reads the environment, and one that a run of one process passes
without importing torch. Gloo on a CPU, NCCL on GPUs. torchrun's own store stays reachable when a
rank dies, for its agent holds it.

Surprise: the store outlives a restart too, with the addresses and notes of ranks that are gone, and
agents of several machines count restarts differently. So each start agrees on a name of its own.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

from fivefold.parallel.config import ParallelConfig
from fivefold.stage import OneProcess, Ranks

if TYPE_CHECKING:
    from torch.distributed import Store

    from fivefold.parallel.failure import RankError

_END_SECONDS = 5.0
"""How long a process that failed has to end by itself."""
_POLL_SECONDS = 0.05
"""Between two looks for ranks that start."""


def started_processes() -> int:
    """Return the number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def started_here() -> int:
    """Return the number of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined(config: ParallelConfig, device: str) -> Iterator[Ranks]:
    """Join the other processes for as long as the context lasts.

    Raises:
        ConfigError: their number is not that of the mesh, or no training spreads over its axes.
        RankError: not all of them have started in time.
    """
    config.check_world(started_processes())
    config.check_trained()
    if config.size == 1:
        yield OneProcess()
        return
    import torch
    import torch.distributed as dist

    from fivefold.parallel.mesh import Mesh, World

    where = torch.device("cpu")
    if device == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    store, rank, size = next(iter(dist.rendezvous("env://")))
    name = agree_on_start(store, rank, size, config.timeout_seconds)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=dist.PrefixStore(f"{name}/group", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=config.timeout_seconds),
    )
    try:
        yield Mesh(config, World(rank, size, dist.PrefixStore(f"{name}/fivefold", store), where))
    except BaseException:
        # A thread that saves, or a group, may wait for a rank that never answers.
        ender = threading.Timer(_END_SECONDS, os._exit, (2,))
        ender.daemon = True
        ender.start()
        raise
    dist.destroy_process_group()


def agree_on_start(store: "Store", rank: int, size: int, limit_seconds: float) -> str:
    """Return a name that the ranks of this start share, and no start before on this store.

    Rank 0 answers everyone who calls until all have come, so that it may answer calls of ranks
    that are gone; those who come read the answer to their own call only.

    Raises:
        RankError: some did not come in time.
    """
    me = uuid.uuid4().hex
    if rank:
        from torch.distributed import DistStoreError

        store.set(f"call/{rank}", me)
        try:
            store.wait([f"answer/{me}"], timedelta(seconds=limit_seconds))
        except DistStoreError as error:
            raise _late(size, limit_seconds, "no answer from rank 0") from error
        name = store.get(f"answer/{me}").decode()
        store.set(f"{name}/came/{rank}", "")
        return name
    until, missing = time.monotonic() + limit_seconds, list(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"call/{other}"]):
                store.set(f"answer/{store.get(f'call/{other}').decode()}", me)
        missing = [other for other in missing if not store.check([f"{me}/came/{other}"])]
        if missing and time.monotonic() > until:
            silent = ", ".join(map(str, missing[:8]))
            raise _late(size, limit_seconds, f"no call from rank {silent}")
        time.sleep(_POLL_SECONDS if missing else 0)
    return me


def _late(size: int, limit_seconds: float, found: str) -> "RankError":
    from fivefold.parallel.failure import RankError

    return RankError(
        expected=f"{size} processes to start within {limit_seconds:g} s",
        found=found,
        fix="Look at its machine, or raise `parallel.timeout_seconds`",
    )


def failures_told(ranks: Ranks) -> AbstractContextManager[None]:
    """Return the context in which a failure of one rank ends all; nothing for one process."""
    if isinstance(ranks, OneProcess):
        return nullcontext()
    from fivefold.parallel.failure import tell_failures
    from fivefold.parallel.mesh import Mesh

    assert isinstance(ranks, Mesh), "several ranks are a mesh"
    return tell_failures(ranks)
