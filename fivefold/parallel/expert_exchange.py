"""Rows that travel to the ranks of their experts and back: flat, or by way of a node's own ranks.

`Flat` is one all-to-all over the group. `TwoLevels` sends every row first to the rank of its own
node that has the target's place within the node, then across nodes to the target: each rank has one
partner a node instead of every rank, so that few large messages cross the slow network. Both
deliver the same rows in the same order, that of the senders, so that nothing after depends on the
way. The backward of a delivery is the delivery of the gradients in the other direction.

A header goes ahead with the counts. It names sender, addressee and layer, so that a group in
another order, or a rank that has come to another layer, ends the step instead of mixing up tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fivefold.errors import ConfigError, MismatchError
from fivefold.parallel.collectives import all_to_all
from fivefold.parallel.config import rank_table
from fivefold.parallel.mesh import Group, Mesh

Deliver = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""(rows by addressee, rows to each rank, rows from each rank) -> rows by sender."""


class Flat:
    """One all-to-all over the group."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __call__(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Deliver rows [P, ...]."""
        return all_to_all(rows, sent, received, self.group)


class TwoLevels:
    """Within the node to the place of the target, then across nodes."""

    def __init__(self, group: Group, node: Group, across: Group) -> None:
        """Deliver within `group`, whose ranks are those of `node`, node by node.

        `across` holds the ranks of one place, one a node.
        """
        assert group.size == node.size * across.size, "nodes of one size make the group"
        self.group, self._node, self._across = group, node, across

    def __call__(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Deliver rows [P, ...]."""
        places, nodes = self._node.size, self._across.size
        # By place and then node of the target, which is the order of the first leg.
        runs = rows.split(list(sent))
        turned = [runs[n * places + p] for p in range(places) for n in range(nodes)]
        counts = torch.tensor(sent, device=rows.device).view(nodes, places).T.contiguous()
        ones = [1] * places
        # [place of the sender, node of the target]: what this rank passes on.
        relayed = all_to_all(counts, ones, ones, self._node).tolist()
        leg = [sum(part) for part in counts.tolist()]
        middle = all_to_all(torch.cat(turned), leg, [sum(part) for part in relayed], self._node)
        parts = middle.split([count for part in relayed for count in part])
        turned = [parts[p * nodes + n] for n in range(nodes) for p in range(places)]
        leg = [sum(part[n] for part in relayed) for n in range(nodes)]
        arriving = [sum(received[n * places : (n + 1) * places]) for n in range(nodes)]
        return all_to_all(torch.cat(turned), leg, arriving, self._across)


def delivery(mesh: Mesh, ranks_per_node: int | None = None) -> Flat | TwoLevels:
    """Return how this rank's rows reach the ranks of `ep`; all ranks of the mesh together.

    `ranks_per_node` asks for two levels where a group spans several nodes.

    Raises:
        ConfigError: nodes that cut a group unevenly.
    """
    group = mesh.group("ep")
    if ranks_per_node is None or group.size <= ranks_per_node or ranks_per_node == 1:
        return Flat(group)
    if group.size % ranks_per_node:
        raise ConfigError(
            expected=f"`ep={group.size}` to be whole nodes of {ranks_per_node} ranks",
            found=f"{group.size / ranks_per_node:.2f} nodes",
            fix="Choose a multiple or a divisor of the ranks of a node",
        )
    # [group, node of the group, place in the node].
    table = torch.tensor(rank_table(mesh.config, "ep")).unflatten(1, (-1, ranks_per_node))
    node = mesh.make_group("ep-node", table.flatten(0, 1).tolist())
    across = mesh.make_group("ep-across", table.transpose(1, 2).flatten(0, 1).tolist())
    return TwoLevels(group, node, across)


class Counts(NamedTuple):
    """How many rows go where."""

    sent: list[int]
    """To each rank."""
    received: list[int]
    """From each rank."""
    experts: list[list[int]]
    """From each rank for each expert of this rank."""


def exchange_counts(counts_E: Tensor, group: Group, layer: int) -> Counts:
    """Tell each rank how many rows its experts get in this MoE layer.

    Raises:
        MismatchError: a rank is in another layer, or not the one it should be.
    """
    table = counts_E.view(group.size, -1)
    header = torch.tensor(
        [[group.ranks[group.rank], addressee, layer] for addressee in group.ranks],
        device=table.device,
    )
    ones = [1] * group.size
    received = all_to_all(torch.cat([header, table], 1), ones, ones, group).tolist()
    own = group.ranks[group.rank]
    for sender, row in zip(group.ranks, received, strict=True):
        if row[:3] != [sender, own, layer]:
            raise MismatchError(
                expected=f"rank {sender}'s tokens for rank {own} in MoE layer {layer}",
                found=f"those of rank {row[0]} for rank {row[1]} in MoE layer {row[2]}",
                fix="Give every rank the same mesh, model and number of microbatches",
            )
    experts = [row[3:] for row in received]
    return Counts(table.sum(1).tolist(), [sum(row) for row in experts], experts)


def deliver(rows: Tensor, sent: list[int], received: list[int], way: Deliver) -> Tensor:
    """Deliver rows [P, ...], differentiably."""
    return _Delivery.apply(rows, sent, received, way)


class _Delivery(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], way: Deliver
    ) -> Tensor:
        ctx.back = received, sent, way
        return way(rows.contiguous(), sent, received)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        sent, received, way = ctx.back
        return way(grads[0].contiguous(), sent, received), None, None, None
