"""A parameter that several ranks of a pipeline hold: equal at the start, one gradient, one owner.

The embedding is the case: the first stage reads it, and so does the MTP layer, which may stand on
another rank. The copies begin equal, their gradients are summed after the step's last backward
pass, in the order of ranks so that every copy gets the same bits, and one rank, the owner, counts
it in norms and writes it to checkpoints. Two stages of one rank hold one module, and nothing is
sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fivefold.parallel.mesh import Group
from fivefold.parallel.pipeline.message import send, swap


@dataclass(frozen=True)
class SharedParameters:
    """Parameters that the same few ranks hold; each of them makes one of these."""

    parameters: Mapping[str, nn.Parameter]
    """By name, the same names on every holder."""
    ranks: Sequence[int]
    """The holders' places in `group`, the owner first."""
    group: Group
    """The pipeline."""

    @property
    def is_owner(self) -> bool:
        """Does this rank count and save them?"""
        return self.group.rank == self.ranks[0]

    @torch.no_grad()
    def copy_from_owner(self) -> None:
        """Give every copy the owner's values."""
        for parameter in self.parameters.values():
            if self.is_owner:
                for work in self._to_others(parameter.detach().contiguous()):
                    work.wait()
            else:
                received = torch.empty_like(parameter)
                self._receive(received, self.ranks[0])
                parameter.copy_(received)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Replace the gradient of every copy by their sum; call it once, after all backwards.

        Sums run in the gradients' dtype, or in fp32 where that is narrower. A holder whose
        parameter has no gradient contributes zeros, unless it is frozen everywhere.
        """
        for parameter in self.parameters.values():
            if not parameter.requires_grad:
                continue
            wide = torch.promote_types(parameter.dtype, torch.float32)
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            shares = swap(mine.to(wide).contiguous(), self.ranks, self.group)
            total = torch.zeros_like(shares[self.group.rank])
            for rank in sorted(shares):
                total += shares[rank]
            if parameter.grad is None:
                parameter.grad = total.to(parameter.dtype)
            else:
                parameter.grad.copy_(total)

    def _to_others(self, tensor: Tensor) -> list[dist.Work]:
        others = [rank for rank in self.ranks if rank != self.group.rank]
        return [send(tensor, rank, self.group) for rank in others]

    def _receive(self, tensor: Tensor, from_rank: int) -> None:
        dist.recv(tensor, self.group.ranks[from_rank], self.group.handle)
