"""What a rank carries beside its schedule: state, buffers, and the end of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fivefold.models.config import ModelConfig
from fivefold.plan.communication import reduction_seconds
from fivefold.plan.config import Precision, TrainingRun
from fivefold.plan.flops import training_flops
from fivefold.plan.hardware import Hardware
from fivefold.plan.layout import Layout
from fivefold.plan.make_schedule import placement_of
from fivefold.plan.memory import layer_activation_bytes
from fivefold.plan.piece import Piece
from fivefold.plan.sharding import stage_state_bytes

_LOSS_CHUNK_TOKENS = 2048
"""Tokens whose logits exist at once, as the trainer's default has it."""

_NEWTON_SCHULZ_STEPS = 5
"""Iterations of Muon's orthogonalisation (GLM-4.5 report, section 2.4)."""


@dataclass(frozen=True)
class Problem:
    """What stays the same while layouts vary."""

    config: ModelConfig
    run: TrainingRun
    hardware: Hardware
    precision: Precision

    @cached_property
    def flops_a_token(self) -> float:
        """Model FLOPs of one token's share of a step."""
        run = self.run
        return training_flops(self.config, run.context_tokens, stage=run.stage).total

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step."""
        assert self.run.batch_tokens is not None, "the search fills in a batch"
        return self.run.batch_tokens

    def count_microbatches(self, layout: Layout) -> int:
        """Return the rows that the busiest replica takes in one step, one row a microbatch."""
        return math.ceil(self.batch_tokens / self.run.context_tokens / layout.data)


def stages_by_rank(layout: Layout, stages: Sequence[Piece]) -> list[list[Piece]]:
    """Group the stages by the pipeline rank that holds them."""
    ranks: list[list[Piece]] = [[] for _ in range(layout.pipeline)]
    homes = placement_of(layout.schedule, layout.pipeline, layout.chunks)
    for home, stage in zip(homes, stages, strict=True):
        ranks[home].append(stage)
    return ranks


def largest_state_bytes(problem: Problem, layout: Layout, stages: Sequence[Piece]) -> float:
    """Return the bytes of weights, gradients and optimizer state on the fullest rank.

    Matrices carry Muon's one moment, embedding and head AdamW's two.
    """
    precision = problem.precision
    kinds = (
        ("dense", layout.dense_shards, 1),
        ("table", layout.dense_shards, 2),
        ("experts", layout.expert_shards, 1),
    )
    return max(
        sum(
            stage_state_bytes(
                [getattr(stage, kind) for stage in local],
                shards,
                layout.sharding,
                weight_bytes=precision.weight_bytes,
                gradient_bytes=precision.gradient_bytes,
                optimizer_bytes=precision.master_bytes + moments * precision.moment_bytes,
            )
            for kind, shards, moments in kinds
        )
        for local in stages_by_rank(layout, stages)
    )


def buffer_bytes(problem: Problem, layout: Layout) -> float:
    """Return the transient bytes of a rank that has everything.

    One chunk of logits with its gradient (bf16 and twice fp32), dispatched rows on their way in and
    out, and with recomputation one layer's activations while its backward pass runs.
    """
    config, precision = problem.config, problem.precision
    tokens = problem.run.context_tokens / layout.context / layout.tensor
    logits = _LOSS_CHUNK_TOKENS * config.vocab_size * (2 + 4 + 4) / layout.tensor
    rows = 2 * tokens * config.num_experts_per_tok * config.hidden_size * precision.activation_bytes
    working = 0.0
    if layout.recompute != "none":
        last = config.num_hidden_layers - 1
        sparse = problem.run.stage == "sparse"
        working = tokens * layer_activation_bytes(config, last, precision, sparse=sparse)
    return max(logits, rows * (layout.expert > 1) + working)


def exposed_reduction_seconds(problem: Problem, layout: Layout, stages: Sequence[Piece]) -> float:
    """Return the time of gradient and weight collectives that compute does not hide.

    Rolling buffers reduce once for every group of microbatches, gradients or weights sharded
    without a pipeline once for each microbatch.
    """
    microbatches = problem.count_microbatches(layout)
    passes = {
        "rolling": math.ceil(microbatches / layout.pipeline),
        "gradients": microbatches,
        "weights": microbatches,
    }.get(layout.sharding, 1)
    slowest = 0.0
    for local in stages_by_rank(layout, stages):
        dense = sum(stage.dense + stage.table for stage in local)
        experts = sum(stage.experts for stage in local)
        seconds = 0.0
        for parameters, shards in ((dense, layout.dense_shards), (experts, layout.expert_shards)):
            seconds += reduction_seconds(
                parameters,
                shards,
                layout,
                problem.hardware,
                gradient_bytes=problem.precision.gradient_bytes,
                weight_bytes=problem.precision.weight_bytes,
                passes=passes,
            )
        slowest = max(slowest, seconds)
    return (1 - problem.hardware.hidden_reduction) * slowest


def optimizer_seconds(problem: Problem, layout: Layout, stages: Sequence[Piece]) -> float:
    """Return the time of Muon's Newton-Schulz on the fullest rank, each matrix owned by one rank.

    Five iterations of three products on a matrix as large as an expert's: 4 m^2 n + 2 m^3 FLOPs
    each. Element-wise updates are left out.
    """
    config, hardware = problem.config, problem.hardware
    small, large = sorted((config.moe_intermediate_size, config.hidden_size))
    flops_a_parameter = _NEWTON_SCHULZ_STEPS * (4 * small + 2 * small**2 / large)
    owned = layout.sharding != "none"
    most = 0.0
    for local in stages_by_rank(layout, stages):
        dense = sum(stage.dense for stage in local) / (layout.dense_shards if owned else 1)
        experts = sum(stage.experts for stage in local) / (layout.expert_shards if owned else 1)
        most = max(most, dense + experts)
    return most * flops_a_parameter / hardware.matmul_rate(small)
