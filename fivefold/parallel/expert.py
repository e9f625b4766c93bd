"""Expert parallelism: each rank of `ep` holds some experts of every layer and gets their tokens.

The dispatcher that `models.moe` calls: token-expert pairs sorted by expert, counts exchanged, rows
and router weights sent, the experts run by `ops.experts`, results sent back and added up a token in
the order of its experts, as one device does. No token is dropped, whatever the counts.

Ranks of `ep` that see different tokens (data, context and tensor ranks alike: a tensor rank has its
part of the sequence) all send theirs, so that an expert's gradient lacks only the tokens of the
ranks that hold the same experts, `edp`. Source: DeepSeek-V3 report, section 3.2; Megatron Core's
parallel folding.

Surprise: a rank without any token runs one row of zeros. Its experts' gradients are then zeros, as
those of idle experts are in one process, and its part in the exchanges of the backward is kept.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fivefold.models.moe import Dispatcher
from fivefold.ops.experts import gather_sum, run_experts
from fivefold.parallel.expert_exchange import Flat, TwoLevels, deliver, exchange_counts


class Pairs(NamedTuple):
    """The token-expert pairs, by expert and in token order within one."""

    token_P: Tensor
    """Token of each place."""
    place_TA: Tensor
    """Place of each pair."""
    counts_E: Tensor
    """Pairs of each expert, int64."""


def sort_pairs(chosen_TA: Tensor, experts: int) -> Pairs:
    """Group the pairs of `chosen_TA` by expert, without padding."""
    flat = chosen_TA.flatten()
    order = torch.argsort(flat, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    counts_E = torch.bincount(flat, minlength=experts)
    return Pairs(order // max(chosen_TA.shape[1], 1), place.view_as(chosen_TA), counts_E)


@dataclass(frozen=True)
class ExpertDispatcher:
    """The dispatcher of one layer, of whose experts every rank holds an equal run."""

    way: Flat | TwoLevels
    """How rows reach the ranks of `ep`."""
    experts: int
    """Of all ranks; divided by them."""
    layer: int = 0
    """Goes into the header of the exchanges: ranks in different layers notice."""
    run: Dispatcher = run_experts
    """What runs this rank's experts on the rows that came."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "ExpertDispatcher":
        """Stay one: a copy of a model is on the same ranks."""
        return self

    def __call__(
        self,
        x_TD: Tensor,
        chosen_TA: Tensor,
        weight_TA: Tensor,
        gate_up_EFD: Tensor,
        down_EDF: Tensor,
    ) -> Tensor:
        """Compute `ops.experts.run_experts` with all ranks' experts."""
        way, own = self.way, len(gate_up_EFD)
        ranks = way.group.size
        assert own * ranks == self.experts, f"{own} of {self.experts} experts on one of {ranks}"
        pairs = sort_pairs(chosen_TA, self.experts)
        counts = exchange_counts(pairs.counts_E, way.group, self.layer)
        there = counts.sent, counts.received
        x_RD = deliver(_Spread.apply(x_TD, pairs.token_P, pairs.place_TA), *there, way)
        weight_P1 = _arrange(weight_TA, pairs.place_TA)
        weight_R1 = deliver(weight_P1, *there, way)
        chosen_R1 = _experts_of(counts.experts, chosen_TA)
        rows = len(x_RD)
        if rows == 0:
            x_RD, weight_R1 = F.pad(x_RD, (0, 0, 0, 1)), F.pad(weight_R1, (0, 0, 0, 1))
            chosen_R1 = chosen_TA.new_zeros(1, 1)
        y_RD = self.run(x_RD, chosen_R1, weight_R1, gate_up_EFD, down_EDF)[:rows]
        y_PD = deliver(y_RD, counts.received, counts.sent, way)
        return _Combine.apply(y_PD, pairs.token_P, pairs.place_TA)


def _experts_of(counts: list[list[int]], like: Tensor) -> Tensor:
    """Return the expert of each received row, counted on this rank, [R, 1]."""
    numbers = torch.tensor(counts, device=like.device).flatten()
    own = torch.arange(len(counts[0]), device=like.device).repeat(len(counts))
    return own.repeat_interleave(numbers)[:, None]


def _arrange(weight_TA: Tensor, place_TA: Tensor) -> Tensor:
    """Return the pairs' weights in the pairs' order, [P, 1]."""
    order = torch.argsort(place_TA.flatten())
    return weight_TA.flatten()[order, None]


class _Spread(torch.autograd.Function):
    """Copy each token to its pairs; the gradient adds up in the order of the token's experts."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_P: Tensor, place_TA: Tensor) -> Tensor:
        ctx.save_for_backward(place_TA)
        return x_TD.index_select(0, token_P)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (place_TA,) = ctx.saved_tensors
        return gather_sum(grads[0], place_TA), None, None


class _Combine(torch.autograd.Function):
    """The other way round."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, token_P: Tensor, place_TA: Tensor) -> Tensor:
        ctx.save_for_backward(token_P)
        return gather_sum(y_PD, place_TA)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (token_P,) = ctx.saved_tensors
        return grads[0].index_select(0, token_P), None, None
