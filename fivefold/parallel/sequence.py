"""The sequence among tensor ranks: whole where heads or columns are shared, in parts elsewhere.

Norms, residual stream and router work on a rank's own part of the tokens (sequence parallelism).
Before a matrix that is cut, the parts are gathered; after its partner, whose products are partial
sums, they are added up and cut again in one reduce-scatter: the bytes of one all-reduce, and
activations of 1/ranks in between. Source: Korthikanti et al. 2022, figure 5.

Each operation states what its gradient is. `gather` feeds work that differs on every rank, so that
its backward adds the ranks' gradients up; `gather_alike` and `sum_alike` feed work that is the same
on every rank, whose gradient each rank has whole already. The gradient of a replicated parameter is
then always this rank's share, and the sum over ranks is the whole.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fivefold.errors import ConfigError, MismatchError
from fivefold.parallel.collectives import all_gather, all_reduce, all_to_all, reduce_scatter
from fivefold.parallel.mesh import Group


class TensorAxis:
    """The tensor ranks, as the modules of a model on them see them."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "TensorAxis":
        """Stay one: a copy of a model is on the same ranks."""
        return self

    @property
    def size(self) -> int:
        """Number of tensor ranks."""
        return self.group.size

    def part(self, tokens: int) -> slice:
        """Return this rank's part of so many tokens of a row."""
        run = tokens // self.size
        return slice(self.group.rank * run, (self.group.rank + 1) * run)

    def own(self, whole_BTX: Tensor) -> Tensor:
        """Return this rank's part of (B, T, ...)."""
        if self.size == 1:
            return whole_BTX
        return whole_BTX[:, self.part(whole_BTX.shape[1])]

    def gather(self, own_BTX: Tensor) -> Tensor:
        """Return the whole sequence; the ranks' gradients of it add up."""
        if self.size == 1:
            return own_BTX
        return _Gather.apply(own_BTX, self.group, True)

    def gather_alike(self, own_BTX: Tensor) -> Tensor:
        """Return the whole sequence for work that every rank does alike."""
        return _Gather.apply(own_BTX, self.group, False)

    def scatter_sum(self, partial_BTX: Tensor) -> Tensor:
        """Add up the ranks' partial (B, T, ...) and return this rank's part of the sequence."""
        return _ScatterSum.apply(partial_BTX, self.group)

    def sum_alike(self, partial: Tensor) -> Tensor:
        """Add up the ranks' partial tensors for work that every rank does alike."""
        return _SumAlike.apply(partial, self.group)

    def heads_to_queries(self, x_BTHX: Tensor) -> Tensor:
        """Return all heads of this rank's queries, from its heads of all; without gradient."""
        parts = _cut(x_BTHX.detach(), self.size)
        ones = [1] * self.size
        return all_to_all(parts, ones, ones, self.group).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def stack(self, own: Tensor) -> Tensor:
        """Return the ranks' tensors one after the other along the first dim; without gradient."""
        own = own.detach().contiguous()
        whole = own.new_empty(self.size, *own.shape)
        _wait(all_gather(whole, own.view(-1), self.group))
        return whole.flatten(0, 1)

    def check(self, ids_BT: Tensor) -> None:
        """Refuse rows that cannot be cut, or that are not the same on every rank.

        Raises:
            ConfigError: tokens that the ranks do not divide.
            MismatchError: another rank has other rows.
        """
        if self.size == 1:
            return
        rows, tokens = ids_BT.shape
        order = torch.arange(1, ids_BT.numel() + 1, device=ids_BT.device)
        mark = (ids_BT.flatten() * order).sum()
        shape = torch.tensor([[rows, tokens]], device=ids_BT.device)
        found = self.stack(torch.cat([shape, mark.view(1, 1)], 1)).tolist()
        for rank, other in zip(self.group.ranks, found, strict=True):
            if other != found[0]:
                raise MismatchError(
                    expected=f"the rows of rank {self.group.ranks[0]}, {found[0][0]} of "
                    f"{found[0][1]} tokens, on all tensor ranks {self.group.ranks}",
                    found=f"{other[0]} of {other[1]} tokens on rank {rank}, or other tokens",
                    fix="Give ranks that differ in `tp` alone the same rows",
                )
        check_row(tokens, self.size)


def check_row(tokens: int, ranks: int) -> None:
    """Refuse rows of so many tokens where tensor ranks cannot share them.

    Raises:
        ConfigError: the ranks do not divide them.
    """
    if tokens % ranks:
        raise ConfigError(
            expected=f"rows of tokens that {ranks} tensor ranks divide",
            found=f"{tokens} tokens",
            fix="Change the length of rows, or `parallel.tp`",
        )


def _cut(whole_BTX: Tensor, ranks: int) -> Tensor:
    """Return the ranks' parts of the sequence one after the other, [ranks, B, T / ranks, ...]."""
    return whole_BTX.unflatten(1, (ranks, -1)).transpose(0, 1).contiguous()


def _gather(own_BTX: Tensor, group: Group) -> Tensor:
    own_BTX = own_BTX.contiguous()
    parts = own_BTX.new_empty(group.size, *own_BTX.shape)
    _wait(all_gather(parts, own_BTX.view(-1), group))
    return parts.transpose(0, 1).flatten(1, 2)


def _scatter_sum(whole_BTX: Tensor, group: Group) -> Tensor:
    parts = _cut(whole_BTX, group.size)
    own = torch.empty_like(parts[0])
    _wait(reduce_scatter(own.view(-1), parts, group))
    return own


def _wait(work: Any) -> None:
    if work is not None:
        work.wait()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group, adds_up: bool) -> Tensor:
        ctx.group, ctx.adds_up = group, adds_up
        return _gather(own, group)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.adds_up:
            return _scatter_sum(grads[0], ctx.group), None, None
        return TensorAxis(ctx.group).own(grads[0]), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _scatter_sum(partial, group)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        return _gather(grads[0], ctx.group), None


class _SumAlike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: Group) -> Tensor:
        return all_reduce(partial.clone(), group)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        return grads[0], None
