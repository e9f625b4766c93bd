"""One optimizer step: microbatches, clipping, the non-finite policy, the update, router biases."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fivefold.data.loader import Rows
from fivefold.models.transformer import Transformer
from fivefold.train.balance import BalanceTracker
from fivefold.train.batch import label_counts, make_batch, microbatches
from fivefold.train.config import PretrainConfig
from fivefold.train.losses import pretrain_loss
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.schedule import learning_rate, mtp_weight, router_bias_rate


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    depth_nats: list[float]
    """Mean loss of each depth, nats a token; depth 0 is next-token prediction."""
    balance: float
    """Mean sequence balance loss."""
    gradient_norms: dict[str, float]
    """Norm of each parameter group before clipping."""
    learning_rate: float
    """Rate of this step."""
    is_skipped: bool
    """Was the update left out for a non-finite gradient?"""
    expert_counts: list[Tensor]
    """Tokens of each expert, a router."""


def train_step(
    model: Transformer,
    optimizer: HybridOptimizer,
    balance: BalanceTracker,
    rows: Rows,
    tokens_before: int,
    config: PretrainConfig,
) -> StepResult:
    """Take one step on `rows`; `tokens_before` is the schedule's place."""
    device = model.lm_head.weight.device
    depths = config.model.fivefold.mtp_depths if model.mtp is not None else 0
    denominators = label_counts(rows, depths)
    depth_nats = torch.zeros(depths + 1, device=device)
    balance_loss = torch.zeros((), device=device)
    optimizer.zero_grad()
    for part in microbatches(rows, config.microbatch_rows):
        losses = pretrain_loss(
            model,
            make_batch(part, depths, device),
            denominators=denominators,
            batch_rows=len(rows.ids),
            mtp_weight=mtp_weight(tokens_before, config),
            balance_weight=config.balance_loss_weight,
            chunk_tokens=config.loss_chunk_tokens,
        )
        losses.total.backward()
        balance.add(losses.main_routing, losses.mtp_routing)
        depth_nats += losses.depth_nats
        balance_loss += losses.balance
    norms = clip_gradients(optimizer.parameter_groups, config.clip_norm)
    lr = learning_rate(tokens_before + rows.ids[:, 1:].size, config)
    is_finite = all(math.isfinite(norm) for norm in norms.values())
    if is_finite:
        optimizer.step(lr)
    optimizer.zero_grad()
    counts = balance.update(router_bias_rate(tokens_before, config) if is_finite else 0.0)
    return StepResult(depth_nats.tolist(), float(balance_loss), norms, lr, not is_finite, counts)


def clip_gradients(groups: Mapping[str, list[nn.Parameter]], limit: float) -> dict[str, float]:
    """Scale each group's gradients to at most `limit`; returns the norms before."""
    norms = {}
    for name, parameters in groups.items():
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            norms[name] = float(norm)
            if limit < norms[name] < math.inf:
                torch._foreach_mul_(gradients, limit / norms[name])
    return norms
