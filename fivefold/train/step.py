"""One optimizer step: microbatches, clipping, the non-finite policy, the update, router biases."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fivefold.data.loader import Rows
from fivefold.train.balance import BalanceTracker
from fivefold.train.batch import microbatches
from fivefold.train.compute import ComputeModel
from fivefold.train.config import GradientConfig
from fivefold.train.losses import Objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.schedule import learning_rate, router_bias_rate


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    measured: dict[str, float]
    """What the objective measured, means over the step."""
    gradient_norms: dict[str, float]
    """Norm of each parameter group before clipping."""
    learning_rate: float
    """Rate of this step."""
    is_skipped: bool
    """Was the update left out for a non-finite gradient?"""
    expert_counts: list[Tensor]
    """Tokens of each expert, a router."""


def train_step(
    compute: ComputeModel,
    optimizer: HybridOptimizer,
    balance: BalanceTracker,
    objective: Objective,
    rows: Rows,
    tokens_before: int,
    config: GradientConfig,
    *,
    microbatch_rows: int,
) -> StepResult:
    """Take one step on `rows`; `tokens_before` is the schedule's place."""
    measured: dict[str, Tensor] = {}
    optimizer.zero_grad()
    compute.refresh()
    for part in microbatches(rows, microbatch_rows):
        losses = objective(compute.model, part, rows, tokens_before)
        losses.total.backward()
        compute.collect()
        balance.add(losses.main_routing, losses.mtp_routing)
        for name, share in losses.measured.items():
            measured[name] = measured[name] + share if name in measured else share
    norms = clip_gradients(optimizer.parameter_groups, config.clip_norm)
    lr = learning_rate(tokens_before + rows.ids[:, 1:].size, config)
    is_finite = all(math.isfinite(norm) for norm in norms.values())
    if is_finite:
        optimizer.step(lr)
    optimizer.zero_grad()
    counts = balance.update(router_bias_rate(tokens_before, config) if is_finite else 0.0)
    values = torch.stack([value.float() for value in measured.values()]).tolist()
    return StepResult(dict(zip(measured, values, strict=True)), norms, lr, not is_finite, counts)


def clip_gradients(groups: Mapping[str, list[nn.Parameter]], limit: float) -> dict[str, float]:
    """Scale each group's gradients to at most `limit`; returns the norms before."""
    norms = {}
    for name, parameters in groups.items():
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            norms[name] = float(torch.nn.utils.get_total_norm(gradients))
            if limit < norms[name] < math.inf:
                torch._foreach_mul_(gradients, limit / norms[name])
    return norms
