"""Muon with Muon Split: momentum, orthogonalised one block at a time (GLM-5 report 2.1, 2.4).

What counts as one matrix is data. A `MatrixSplit` cuts a parameter into equally shaped blocks: the
heads of a projection, the experts of a stack, gate and up of a fused pair, latent and rotary rows.
`matrix_splits` writes them down for every parameter, by name. The step gathers blocks of one shape
from ALL parameters into one Newton-Schulz batch, so that it costs a few large products.

Update of a block W of M x N, with gradient g and average m:
    m <- mu m + (1 - mu) g;  u = mu m + (1 - mu) g;  O = polar factor of u
    W <- (1 - lr wd) W - lr scale O,  scale = 0.2 sqrt(max(M, N))
A full-rank O has root mean square 1 / sqrt(max(M, N)), so the scale makes it 0.2, AdamW's typical
one (Moonlight, arXiv 2502.16982). Trap: the scale takes the BLOCK's shape. The whole parameter's
factor on its blocks would multiply the step by 2.8 (q_b_proj) to 7.5 (kv_b_proj) in GLM-5.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.models.config import ModelConfig
from fivefold.ops.bf16 import multiplies_bf16
from fivefold.ops.newton_schulz import COEFFICIENTS, orthogonalise
from fivefold.train.optimizer_config import OptimizerConfig


@dataclass(frozen=True)
class MatrixSplit:
    """Rows `start` to `stop` of each of `groups` equal row groups of a parameter.

    Each group gives one block; with `merged`, the groups' rows together form a single block.
    """

    groups: int = 1
    start: int = 0
    stop: int | None = None
    merged: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """Return the rows as a view [groups, stop - start, N] of a tensor [..., rows, N]."""
        return tensor.view(self.groups, -1, tensor.shape[-1])[:, self.start : self.stop]

    def block_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (blocks, M, N) for a parameter of this shape."""
        group_rows = math.prod(shape[:-1]) // self.groups
        rows = len(range(group_rows)[self.start : self.stop])
        return (1, self.groups * rows, shape[-1]) if self.merged else (self.groups, rows, shape[-1])


WHOLE = (MatrixSplit(),)
"""Splits of a parameter that is one matrix."""
ADAMW: tuple[MatrixSplit, ...] = ()
"""Splits of a parameter that Muon leaves to AdamW."""


def matrix_splits(
    config: ModelConfig, shapes: Mapping[str, Sequence[int]], policy: OptimizerConfig
) -> dict[str, tuple[MatrixSplit, ...]]:
    """Decide by name how Muon cuts each parameter; no splits means AdamW.

    `shapes` holds the model's parameters by their names in it. A name without a rule, and splits
    that do not cover a parameter's rows exactly once, are defects and fail an assertion.
    """
    rules = _rules(config, policy)
    chosen = {}
    for name, shape in shapes.items():
        rule = re.sub(r"^(layers\.\d+|mtp\.block)\.", "layer.", name)
        is_bias = rule.endswith(".bias")
        key = rule.removesuffix(".bias") + ".weight" if is_bias else rule
        assert key in rules, f"no optimizer rule for the parameter {name}"
        chosen[name] = ADAMW if is_bias or policy.matrices == "adamw" else rules[key]
        _check_cover(name, shape, chosen[name])
    return chosen


def _rules(config: ModelConfig, policy: OptimizerConfig) -> dict[str, tuple[MatrixSplit, ...]]:
    """Return splits by parameter name, with `layer` for any layer."""
    heads = config.num_attention_heads
    rope = config.qk_rope_head_dim

    def per_head(heads: int, *widths: int) -> tuple[MatrixSplit, ...]:
        cuts = _row_cuts(widths)
        return tuple(replace(cut, groups=heads, merged=not policy.muon_split) for cut in cuts)

    if config.is_mla and policy.split_rope:
        queries = per_head(heads, config.qk_nope_head_dim, rope)
    else:
        queries = per_head(heads, config.qk_head_dim)
    attention = {"q_proj": queries, "o_proj": WHOLE, "q_norm": ADAMW, "k_norm": ADAMW}
    if config.kv_lora_rank is not None:
        attention |= {
            "q_a_proj": WHOLE,
            "q_a_layernorm": ADAMW,
            "q_b_proj": queries,
            "kv_a_proj_with_mqa": _row_cuts((config.kv_lora_rank, rope)),
            "kv_a_layernorm": ADAMW,
            "kv_b_proj": per_head(heads, config.qk_nope_head_dim, config.v_head_dim),
        }
    else:
        pairs = per_head(config.num_key_value_heads, config.head_dim)
        attention |= {"k_proj": pairs, "v_proj": pairs}
    if config.index_n_heads is not None:
        attention |= {
            "indexer.wq_b": per_head(config.index_n_heads, config.index_head_dim),
            "indexer.wk": WHOLE,
            "indexer.weights_proj": WHOLE,
            "indexer.k_norm": ADAMW,
        }
    experts, width = config.n_routed_experts, config.moe_intermediate_size
    rules = {
        "embed_tokens.weight": ADAMW,
        "lm_head.weight": WHOLE if policy.muon_lm_head else ADAMW,
        "norm.weight": ADAMW,
        "layer.input_layernorm.weight": ADAMW,
        "layer.post_attention_layernorm.weight": ADAMW,
        "layer.mlp.gate.weight": WHOLE if policy.muon_router else ADAMW,
        "layer.mlp.experts.gate_up": tuple(
            replace(cut, groups=experts) for cut in _row_cuts((width, width))
        ),
        "layer.mlp.experts.down": (MatrixSplit(groups=experts),),
        "mtp.eh_proj.weight": WHOLE,
        **{f"mtp.{norm}.weight": ADAMW for norm in ("enorm", "hnorm", "shared_head_norm")},
    }
    for part in ("gate_proj", "up_proj", "down_proj"):
        rules[f"layer.mlp.{part}.weight"] = rules[f"layer.mlp.shared_experts.{part}.weight"] = WHOLE
    return rules | {f"layer.self_attn.{name}.weight": cuts for name, cuts in attention.items()}


def _row_cuts(widths: Sequence[int]) -> tuple[MatrixSplit, ...]:
    """Cut rows into consecutive runs of these widths."""
    stops = [sum(widths[: index + 1]) for index in range(len(widths))]
    return tuple(
        MatrixSplit(start=stop - width, stop=stop)
        for width, stop in zip(widths, stops, strict=True)
    )


def _check_cover(name: str, shape: Sequence[int], splits: tuple[MatrixSplit, ...]) -> None:
    """Assert that consecutive splits reach exactly to the end of the row groups."""
    if not splits:
        return
    rows = math.prod(shape[:-1])
    stop = splits[-1].stop
    fits = rows % splits[-1].groups == 0 and stop in (None, rows // splits[-1].groups)
    assert fits, f"{name} of shape {tuple(shape)} cannot be cut as {splits}"


class _Block(NamedTuple):
    """Groups `first` to `last` of one split of the named parameter."""

    name: str
    split: MatrixSplit
    first: int
    last: int

    def of(self, tensor: Tensor) -> Tensor:
        return self.split.view(tensor)[self.first : self.last]


class Muon:
    """Muon over named fp32 parameters; parameters without gradient are left alone in a step."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        splits: Mapping[str, tuple[MatrixSplit, ...]],
        config: OptimizerConfig,
    ) -> None:
        self.parameters = dict(parameters)
        self.momenta = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self._config = config
        self._batches = _plan_batches(self.parameters, splits, config.batch_bytes)

    def step(self, lr: float) -> None:
        """Update the parameters from their gradients at this learning rate."""
        for (rows, columns), blocks in self._batches:
            active = [block for block in blocks if self.parameters[block.name].grad is not None]
            if active:
                self._step_batch(active, rows, columns, lr)

    @torch.no_grad()
    def _step_batch(self, blocks: list[_Block], rows: int, columns: int, lr: float) -> None:
        config = self._config
        weights, gradients, momenta = [], [], []
        for block in blocks:
            parameter = self.parameters[block.name]
            assert parameter.grad is not None
            weights.append(block.of(parameter))
            gradients.append(block.of(parameter.grad))
            momenta.append(block.of(self.momenta[block.name]))
        torch._foreach_lerp_(momenta, gradients, 1 - config.momentum)
        if config.nesterov:
            mixed = torch._foreach_lerp(gradients, momenta, config.momentum)
        else:
            mixed = momenta
        updates = orthogonalise(
            torch.cat([part.reshape(-1, rows, columns) for part in mixed]),
            COEFFICIENTS[config.ns],
            product_dtype(weights[0].device, config),
        )
        counts = [part.numel() // (rows * columns) for part in mixed]
        directions = [
            update.reshape(weight.shape)
            for update, weight in zip(updates.split(counts), weights, strict=True)
        ]
        torch._foreach_mul_(weights, 1 - lr * config.weight_decay)
        torch._foreach_add_(weights, directions, alpha=-lr * update_scale(rows, columns, config))


def product_dtype(device: torch.device, config: OptimizerConfig) -> torch.dtype:
    """Return the precision of the Newton-Schulz products of blocks on `device`."""
    if config.ns_dtype == "auto":
        return torch.bfloat16 if multiplies_bf16(device) else torch.float32
    return getattr(torch, config.ns_dtype)


def update_scale(rows: int, columns: int, config: OptimizerConfig) -> float:
    """Return the factor on the polar factor of a block of rows x columns."""
    if config.update_scale == "keller":
        return math.sqrt(max(1.0, rows / columns))
    return config.update_rms * math.sqrt(max(rows, columns))


def _plan_batches(
    parameters: Mapping[str, nn.Parameter],
    splits: Mapping[str, tuple[MatrixSplit, ...]],
    batch_bytes: int,
) -> list[tuple[tuple[int, int], list[_Block]]]:
    """Group all blocks by shape, in the parameters' order, into batches of at most `batch_bytes`.

    A batch holds at least one matrix; only a stack of blocks is cut to fit.
    """
    by_shape: dict[tuple[int, int], list[list[_Block]]] = defaultdict(lambda: [[]])
    filled: dict[tuple[int, int], int] = defaultdict(int)
    for name, parameter in parameters.items():
        for split in splits[name]:
            count, rows, columns = split.block_shape(parameter.shape)
            shape = (rows, columns)
            limit = max(batch_bytes // (rows * columns * parameter.element_size()), 1)
            first = 0
            while first < count:
                if filled[shape] >= limit:
                    by_shape[shape].append([])
                    filled[shape] = 0
                last = min(count, first + limit - filled[shape])
                groups = (0, split.groups) if split.merged else (first, last)
                by_shape[shape][-1].append(_Block(name, split, *groups))
                filled[shape] += last - first
                first = last
    return [(shape, blocks) for shape, batches in by_shape.items() for blocks in batches]
