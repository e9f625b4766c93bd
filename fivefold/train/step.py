"""One optimizer step: microbatches, clipping, the non-finite policy, the update, router biases.

Data-parallel ranks are given the same rows of the whole step and each runs its share; losses divide
by what the whole step holds, so that their gradients, metrics and expert counts simply add up.
Ranks along `cp` run the same rows, each its tokens, and add up alike. A pipeline runs all
microbatches at once, in the order of its schedule.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fivefold.data.loader import Rows
from fivefold.errors import ConfigError
from fivefold.models.transformer import Transformer
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.mesh import Group, single
from fivefold.parallel.zero import Sharding, global_norm
from fivefold.train.balance import BalanceTracker
from fivefold.train.batch import microbatches
from fivefold.train.config import GradientConfig
from fivefold.train.losses import Objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.piped import PipedModel
from fivefold.train.schedule import learning_rate, router_bias_rate


class Compute(Protocol):
    """What forward and backward run on: a `ComputeModel`, or a model in shards or stages."""

    @property
    def model(self) -> Transformer:
        """The model to run."""
        ...

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        ...

    def collect(self) -> None:
        """Take the gradients of a backward to where the optimizer finds them."""
        ...


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
    compute: Compute,
    optimizer: HybridOptimizer,
    balance: BalanceTracker,
    objective: Objective,
    rows: Rows,
    tokens_before: int,
    config: GradientConfig,
    *,
    microbatch_rows: int,
    sharding: Sharding | None = None,
) -> StepResult:
    """Take one step on `rows`, which all ranks give alike; `tokens_before` is the schedule's place.

    Raises:
        ConfigError: fewer rows than data ranks.
    """
    group = single() if sharding is None else sharding.data_group
    everyone = group if sharding is None else sharding.everyone
    optimizer.zero_grad()
    compute.refresh()
    # Conversations end where they end: their last step may have fewer rows than there are ranks.
    parts = own_microbatches(rows, microbatch_rows, group, may_idle=rows.weight is not None)
    apart: Collection[nn.Parameter] = ()
    combine = None
    if isinstance(compute, PipedModel):
        own = [part for part in parts if part is not None]
        measured = compute.run(own, rows, tokens_before, balance)
        apart, combine = compute.uncounted, compute.norm
    else:
        measured = _run_whole(compute, balance, objective, parts, rows, tokens_before, sharding)
        if len(rows.ids) < group.size:
            measured = _all_names(measured, everyone, compute.model.speeds_R.device)
    if sharding is not None:
        sharding.finish()
        if combine is None:
            combine = _combine(sharding.shard_group, compute.model.speeds_R.device)
    norms = clip_gradients(optimizer.parameter_groups, config.clip_norm, combine, apart)
    lr = learning_rate(tokens_before + rows.ids[:, 1:].size, config)
    is_finite = all(math.isfinite(norm) for norm in norms.values())
    if is_finite:
        optimizer.step(lr)
        if sharding is not None:
            sharding.restore()
    optimizer.zero_grad()
    for count in balance.counts:
        all_reduce(count, everyone)
    counts = balance.update(router_bias_rate(tokens_before, config) if is_finite else 0.0)
    values = torch.stack([value.float() for value in measured.values()])
    if everyone.size > 1:
        values = all_reduce(values.double(), everyone)
    shown = dict(zip(measured, values.tolist(), strict=True))
    return StepResult(shown, norms, lr, not is_finite, counts)


def _run_whole(
    compute: Compute,
    balance: BalanceTracker,
    objective: Objective,
    parts: Sequence[Rows | None],
    rows: Rows,
    tokens_before: int,
    sharding: Sharding | None,
) -> dict[str, Tensor]:
    """Run forward and backward of each microbatch; return the shares of all metrics.

    Where ranks exchange within a microbatch, one without a microbatch of its own runs a row for
    nothing.
    """
    runs_along = sharding is not None and not sharding.takes_uneven_rows
    measured: dict[str, Tensor] = {}
    for part in parts:
        if part is not None:
            losses = objective(compute.model, part, rows, tokens_before)
            losses.total.backward()
            compute.collect()
            balance.add(losses.main_routing, losses.mtp_routing)
            for name, share in losses.measured.items():
                measured[name] = measured[name] + share if name in measured else share
        elif runs_along:
            some = objective(compute.model, rows.part(slice(0, 1)), rows, tokens_before)
            (0.0 * some.total).backward()
            compute.collect()
        if sharding is not None:
            sharding.collect()
    return measured


def _combine(group: Group, device: torch.device) -> Callable[[float | None], float | None]:
    return lambda norm: global_norm(norm, group, device)


def _all_names(
    measured: Mapping[str, Tensor], group: Group, device: torch.device
) -> dict[str, Tensor]:
    """Give a rank without rows the names that the first one measured."""
    names = [list(measured)]
    dist.broadcast_object_list(names, src=group.ranks[0], group=group.handle)
    return {name: measured.get(name, torch.zeros((), device=device)) for name in names[0]}


def own_microbatches(
    rows: Rows, size: int, group: Group, *, may_idle: bool = False
) -> list[Rows | None]:
    """Return this data rank's microbatches of at most `size` rows; None where others have one more.

    Raises:
        ConfigError: fewer rows than ranks, unless ranks `may_idle`.
    """
    count = len(rows.ids)
    if count < group.size and not may_idle:
        raise ConfigError(
            expected=f"at least one row in a step for each of {group.size} data ranks",
            found=f"{count} rows",
            fix="Raise `batch_rows` and `batch_rows_start`, or lower `parallel.dp`",
        )
    most, longer = divmod(count, group.size)
    begin = group.rank * most + min(group.rank, longer)
    own = rows.part(slice(begin, begin + most + (group.rank < longer)))
    parts: list[Rows | None] = [*microbatches(own, size)]
    steps = -(-(most + bool(longer)) // size)
    return parts + [None] * (steps - len(parts))


def clip_gradients(
    groups: Mapping[str, list[nn.Parameter]],
    limit: float,
    combine: Callable[[float | None], float | None] | None = None,
    apart: Collection[nn.Parameter] = (),
) -> dict[str, float]:
    """Scale each group's gradients to at most `limit`; returns the norms before.

    `combine` turns the norm of what this rank holds into that of what all ranks hold, None being
    that of no gradient; those `apart` are counted by another rank.
    """
    norms = {}
    for name, parameters in groups.items():
        gradients = [p.grad for p in parameters if p.grad is not None]
        counted = [p.grad for p in parameters if p.grad is not None and p not in apart]
        norm = float(torch.nn.utils.get_total_norm(counted)) if counted else None
        norm = norm if combine is None else combine(norm)
        if norm is None:
            continue
        norms[name] = norm
        if gradients and limit < norm < math.inf:
            torch._foreach_mul_(gradients, limit / norm)
    return norms
