"""What passes between stages: buffers that live as long as they are needed, sends that are reaped.

torch's stages receive into buffers allocated for every microbatch beforehand, of one shape, and
keep every send until the step's end. Here a buffer exists from the posting of its receive, in the
shape that its microbatch has, until the stage has used it. A send is dropped once its transport
reports it done. Surprise: gloo reports nothing before it is waited for; the runtime waits where the
table proves that the receiver has asked (`safe_wait`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from fivefold.parallel.mesh import Group
from fivefold.parallel.pipeline.program import Message
from fivefold.plan.schedule import Action


@dataclass
class MessageLedger:
    """What the messages of one stage hold; bytes sent stand in the group's ledger."""

    buffer_bytes: int = 0
    """Bytes in receive buffers now."""
    peak_buffer_bytes: int = 0
    """Most bytes in receive buffers at once."""
    unfinished: int = 0
    """Sends whose tensors are kept now."""
    peak_unfinished: int = 0
    """Most sends kept at once."""


class Mailbox:
    """The messages of one direction of one stage, by microbatch."""

    def __init__(self, ledger: MessageLedger, device: torch.device) -> None:
        self._ledger, self._device = ledger, device
        self._arrived: dict[int, tuple[Tensor, ...]] = {}
        self._bytes: dict[int, int] = {}

    def allocate(self, microbatch: int, messages: Sequence[Message]) -> tuple[Tensor, ...]:
        """Return buffers to receive into; `take` hands them out once they are filled."""
        assert microbatch not in self._arrived, f"microbatch {microbatch} is received twice"
        buffers = tuple(
            torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in messages
        )
        self._bytes[microbatch] = sum(buffer.nbytes for buffer in buffers)
        ledger = self._ledger
        ledger.buffer_bytes += self._bytes[microbatch]
        ledger.peak_buffer_bytes = max(ledger.peak_buffer_bytes, ledger.buffer_bytes)
        return self.put(microbatch, buffers)

    def put(self, microbatch: int, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Take over tensors from a stage of the same rank."""
        self._arrived[microbatch] = tensors
        return tensors

    def take(self, microbatch: int) -> tuple[Tensor, ...]:
        """Hand the tensors out and forget them."""
        self._ledger.buffer_bytes -= self._bytes.pop(microbatch, 0)
        return self._arrived.pop(microbatch)

    def check_idle(self) -> None:
        """Assert that nothing arrived that nobody took."""
        assert not self._arrived, f"microbatches {sorted(self._arrived)} were never used"


@dataclass
class Outbox:
    """Sends of one stage that may still read their tensors, by the action they come from."""

    ledger: MessageLedger
    group: Group
    _works: dict[Action, list[tuple[dist.Work, Tensor]]] = field(default_factory=dict)

    def send(self, action: Action, tensors: Sequence[Tensor], to_rank: int) -> None:
        """Send the results of F, or of B for either backward, to a rank of the group."""
        self.reap()
        works = []
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            works.append((send(whole, to_rank, self.group), whole))
        self._works[action] = works
        self._count()

    def reap(self) -> None:
        """Drop what the transport reports as done."""
        for action, works in list(self._works.items()):
            self._works[action] = [pair for pair in works if not pair[0].is_completed()]
            if not self._works[action]:
                del self._works[action]
        self._count()

    def wait(self, action: Action) -> None:
        """Wait for one message, which must be on its way to a receiver that has asked for it."""
        for work, _ in self._works.pop(action, []):
            work.wait()
        self._count()

    def wait_all(self) -> None:
        """Wait for everything: the step's end."""
        for action in list(self._works):
            self.wait(action)

    def _count(self) -> None:
        self.ledger.unfinished = sum(map(len, self._works.values()))
        self.ledger.peak_unfinished = max(self.ledger.peak_unfinished, self.ledger.unfinished)


def send(tensor: Tensor, to_rank: int, group: Group) -> dist.Work:
    """Start to send a contiguous tensor to a rank of the group; keep it until the work is done."""
    group.ledger.record("send", group.name, tensor.nbytes)
    work = dist.isend(tensor, group.ranks[to_rank], group.handle)
    assert work is not None, "a rank sends to others only"
    return work


def swap(mine: Tensor, ranks: Sequence[int], group: Group) -> dict[int, Tensor]:
    """Give a contiguous tensor to the other ranks and return everybody's, by rank.

    All messages are posted at once: with NCCL two ranks that both send before they receive wait for
    each other.
    """
    everybody, messages = {group.rank: mine}, []
    for rank in ranks:
        if rank == group.rank:
            continue
        everybody[rank] = torch.empty_like(mine)
        messages.append(dist.P2POp(dist.isend, mine, group.ranks[rank], group.handle))
        messages.append(dist.P2POp(dist.irecv, everybody[rank], group.ranks[rank], group.handle))
        group.ledger.record("send", group.name, mine.nbytes)
    for work in dist.batch_isend_irecv(messages):
        work.wait()
    return everybody
