"""Joining the processes that torchrun started: rank, store, backend, device.

The only place of the room that reads the environment, and one that a run of one process passes
without importing torch. Gloo on a CPU, NCCL on GPUs. torchrun's own store stays reachable when a
rank dies, for its agent holds it.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

from fivefold.parallel.config import ParallelConfig
from fivefold.stage import OneProcess, Ranks

_END_SECONDS = 5.0
"""How long a process that failed has to end by itself."""


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
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=config.timeout_seconds),
    )
    try:
        yield Mesh(config, World(rank, size, dist.PrefixStore("fivefold", store), where))
    except BaseException:
        # A thread that saves, or a group, may wait for a rank that never answers.
        ender = threading.Timer(_END_SECONDS, os._exit, (2,))
        ender.daemon = True
        ender.start()
        raise
    dist.destroy_process_group()


def failures_told(ranks: Ranks) -> AbstractContextManager[None]:
    """Return the context in which a failure of one rank ends all; nothing for one process."""
    if isinstance(ranks, OneProcess):
        return nullcontext()
    from fivefold.parallel.failure import tell_failures
    from fivefold.parallel.mesh import Mesh

    assert isinstance(ranks, Mesh), "several ranks are a mesh"
    return tell_failures(ranks)
