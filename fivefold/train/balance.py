"""Keeping experts evenly used: the loss-free bias and the small sequence loss.

After each optimizer step the bias of an expert moves by a fixed rate towards use: up if it had
fewer tokens than the mean over the global batch, down if more (Wang et al. 2024; DeepSeek-V3
report, section 2.1.2). The sequence loss guards against collapse within one row; its gradient
passes through the mean scores only. The MTP layer's router is balanced over all depths together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fivefold.models.moe import Router, Routing
from fivefold.models.transformer import Transformer
from fivefold.parallel.context.shard import TokenShard


def sequence_balance_loss(routing: Routing, rows: int) -> Tensor:
    """Return sum over experts of f x P, averaged over rows; 1 at perfect balance.

    f is an expert's share of the row's choices times the number of experts, P the mean over the
    row's tokens of its normalised score. Source: DeepSeek-V3 report, equations 17 to 20.
    """
    experts = routing.scores_TE.shape[1]
    share_TE = routing.scores_TE / routing.scores_TE.sum(-1, keepdim=True)
    mean_BE = share_TE.unflatten(0, (rows, -1)).mean(1)
    chosen_BX = routing.chosen_TA.reshape(rows, -1)
    counts_BE = torch.zeros_like(mean_BE)
    counts_BE.scatter_add_(1, chosen_BX, torch.ones_like(chosen_BX, dtype=counts_BE.dtype))
    frequency_BE = counts_BE * (experts / chosen_BX.shape[1])
    return (frequency_BE * mean_BE).sum(-1).mean()


def shared_balance_loss(routing: Routing, shard: TokenShard) -> Tensor:
    """Return a rank's share of `sequence_balance_loss`: f counts the tokens of all ranks."""
    experts = routing.scores_TE.shape[1]
    share_TE = routing.scores_TE / routing.scores_TE.sum(-1, keepdim=True)
    mean_BE = shard.row_sums(share_TE) / shard.tokens
    chosen_TA = routing.chosen_TA
    ones_TA = torch.ones_like(chosen_TA, dtype=share_TE.dtype)
    chosen_TE = torch.zeros_like(share_TE).scatter_add_(1, chosen_TA, ones_TA)
    counts_BE = shard.add_up_(shard.row_sums(chosen_TE.detach()))
    frequency_BE = counts_BE * (experts / (chosen_TA.shape[1] * shard.tokens))
    return (frequency_BE * mean_BE).sum(-1).mean()


class BalanceTracker:
    """Counts each router's choices over a step and moves the biases after it."""

    def __init__(self, model: Transformer) -> None:
        self.routers: list[Router] = [
            module for module in model.modules() if isinstance(module, Router)
        ]
        self.names = [name for name, module in model.named_modules() if isinstance(module, Router)]
        self.counts = self._zeros()

    def _zeros(self) -> list[Tensor]:
        return [
            torch.zeros(router.experts, dtype=torch.int64, device=router.weight.device)
            for router in self.routers
        ]

    def add(self, main: Sequence[Routing], mtp: Sequence[Routing], below: int = 0) -> None:
        """Count the choices of one microbatch; all MTP depths belong to the last router.

        `main` begins above the first `below` routers, where a pipeline runs a part of the model.
        """
        last = len(self.counts) - 1
        for index, routing in [*enumerate(main, below), *((last, routing) for routing in mtp)]:
            chosen = routing.chosen_TA.flatten()
            self.counts[index] += torch.bincount(chosen, minlength=len(self.counts[index]))

    def update(self, rate: float) -> list[Tensor]:
        """Move every bias by `rate`, start counting anew, and return the step's counts a router."""
        counts, self.counts = self.counts, self._zeros()
        if rate:
            for router, count in zip(self.routers, counts, strict=True):
                balance_bias(router.e_score_correction_bias, count, rate)
        return counts


def balance_bias(bias_E: Tensor, counts_E: Tensor, rate: float) -> None:
    """Add rate x sign(mean count - count) to the bias in place."""
    total = counts_E.sum()
    bias_E += rate * torch.sign(total - counts_E * len(counts_E)).to(bias_E.dtype)


def max_violation(counts_E: Tensor) -> float:
    """Return the busiest expert's load over the mean load, minus one; 0 is perfect balance."""
    mean = counts_E.double().mean()
    return float(counts_E.max() / mean - 1) if mean > 0 else 0.0
