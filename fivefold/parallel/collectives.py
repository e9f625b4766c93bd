"""Collectives of torch over a `Group`, each recorded in the ledger; none for a group of one.

Everything that the room sends goes through here, except what FSDP2 and the distributed checkpoint
send themselves. Tensors are contiguous. `sent_bytes` gives the formula behind each record.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fivefold.parallel.mesh import Group

_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


def sent_bytes(operation: str, whole_bytes: float, ranks: int) -> float:
    """Return what one of `ranks` sends: of the whole tensor, twice its other parts or once."""
    share = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1}[operation]
    return share * whole_bytes * (ranks - 1) / ranks


def all_reduce(tensor: Tensor, group: Group, reduction: str = "sum") -> Tensor:
    """Reduce in place over the group (`sum` or `max`) and return the tensor."""
    if group.handle is not None:
        _record("all_reduce", tensor.nbytes, group)
        dist.all_reduce(tensor, _REDUCTIONS[reduction], group.handle)
    return tensor


def reduce_scatter(shard: Tensor, whole: Tensor, group: Group) -> dist.Work | None:
    """Start to sum `whole` over the group, each rank its part, into `shard`; wait on the result.

    `whole` has `group.size` times the elements of `shard`, rank by rank. None: it is done.
    """
    if group.handle is None:
        shard.copy_(whole.view_as(shard))
        return None
    _record("reduce_scatter", whole.nbytes, group)
    return dist.reduce_scatter_single(shard, whole.view(-1), group=group.handle, async_op=True)


def all_gather(whole: Tensor, shard: Tensor, group: Group) -> dist.Work | None:
    """Start to collect every rank's `shard` in `whole`, rank by rank; None: it is done."""
    if group.handle is None:
        whole.copy_(shard.view_as(whole))
        return None
    _record("all_gather", whole.nbytes, group)
    return dist.all_gather_single(whole.view(-1), shard, group=group.handle, async_op=True)


def all_to_all(
    sent: Tensor, sent_counts: Sequence[int], received_counts: Sequence[int], group: Group
) -> Tensor:
    """Send each rank its run of the first dim of `sent`; return what came, in the ranks' order."""
    received, work = start_all_to_all(sent, sent_counts, received_counts, group)
    if work is not None:
        work.wait()
    return received


def start_all_to_all(
    sent: Tensor, sent_counts: Sequence[int], received_counts: Sequence[int], group: Group
) -> tuple[Tensor, dist.Work | None]:
    """Start what `all_to_all` does; the tensor is whole once the work is waited for."""
    if group.handle is None:
        return sent, None
    received = sent.new_empty(sum(received_counts), *sent.shape[1:])
    row_bytes = sent.element_size() * math.prod(sent.shape[1:])
    elsewhere = sum(sent_counts) - sent_counts[group.rank]
    group.ledger.record("all_to_all", group.name, elsewhere * row_bytes)
    work = dist.all_to_all_single(
        received,
        sent,
        list(received_counts),
        list(sent_counts),
        group=group.handle,
        async_op=True,
    )
    return received, work


def sum_values(values: Sequence[float], group: Group, device: torch.device) -> list[float]:
    """Return the sums over the group of some numbers, in fp64."""
    if group.handle is None:
        return list(values)
    return all_reduce(torch.tensor(values, dtype=torch.float64, device=device), group).tolist()


def _record(operation: str, whole_bytes: int, group: Group) -> None:
    group.ledger.record(operation, group.name, sent_bytes(operation, whole_bytes, group.size))
