"""What one attention layer costs a token, dense and sparse: measured and predicted.

Forward and backward of one layer with projections over growing contexts; the sparse one with its
indexer's scan, frozen as in RL. Beside each measurement stands the FLOP model of `plan.flops`,
turned into time by the one rate that the dense layer reaches at the longest context: where a
measurement lies above its line, the form spends its time on something else than matrix products.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fivefold.artifact import write_json
from fivefold.models.config import ModelConfig
from fivefold.models.initialise import initialise
from fivefold.models.mla import LatentAttention
from fivefold.models.surroundings import make_surroundings
from fivefold.ops.rotary import inverse_frequencies, rotary_angles
from fivefold.plan.flops import layer_flops

_REPEATS = 3


class Cost(NamedTuple):
    """One layer at one context length."""

    context_tokens: int
    dense_seconds: float
    """Forward and backward of the whole row."""
    sparse_seconds: float
    """The same with selection."""


def measure_costs(
    config: ModelConfig,
    contexts: Sequence[int],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Cost]:
    """Time one layer of `config` on one row of each length, medians of three."""
    found = []
    for context in contexts:
        dense, sparse = (
            layer_step(config, context, sparse=sparse, device=device, dtype=dtype)
            for sparse in (False, True)
        )
        times: dict[Callable[[], None], list[float]] = {dense: [], sparse: []}
        for step in times:
            step()
        for _ in range(_REPEATS):
            for step, seconds in times.items():
                begin = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - begin)
        found.append(Cost(context, *(statistics.median(times[step]) for step in (dense, sparse))))
    return found


def layer_step(
    config: ModelConfig, context: int, *, sparse: bool, device: str, dtype: torch.dtype
) -> Callable[[], None]:
    """Return forward and backward of one attention layer with random weights on one row."""
    generator = torch.Generator().manual_seed(0)
    layer = LatentAttention(config, 0)
    initialise(layer, config, generator)
    layer.to(device, dtype)
    layer.topk = config.index_topk if sparse else context
    x_BTD = torch.randn(1, context, config.hidden_size, generator=generator).to(device, dtype)
    x_BTD.requires_grad_()
    speeds_R, factor = inverse_frequencies(config.rope_parameters, config.qk_rope_head_dim)
    turn_BTR = rotary_angles(torch.arange(context)[None], speeds_R, factor).to(device)
    around = make_surroundings(
        turn_BTR, None, None, queries=context, absorbed=False, indexer="frozen"
    )

    def step() -> None:
        layer(x_BTD, around, None).y_BTD.sum().backward()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def predicted_flops(config: ModelConfig, context: int, *, sparse: bool) -> float:
    """Return the FLOPs a token of `layer_step`; a frozen indexer has no backward.

    Where every key is kept nobody asks the indexer. Of a short row the model counts gathered keys
    even where masking the others is faster and done.
    """
    part = layer_flops(config, [0], context, sparse=sparse and context > config.index_topk)
    index = part.indexer_projections + part.indexer_scores
    return 3 * (part.attention_projections + part.attention_core) + index


def cost_block(config: ModelConfig, costs: Sequence[Cost]) -> dict[str, Any]:
    """Return the report's block: microseconds a token over the context, measured and predicted."""
    longest = costs[-1]
    dense_flops = predicted_flops(config, longest.context_tokens, sparse=False)
    rate = dense_flops * longest.context_tokens / longest.dense_seconds
    contexts = [cost.context_tokens for cost in costs]
    measured = {
        "dense": [cost.dense_seconds / cost.context_tokens * 1e6 for cost in costs],
        "sparse": [cost.sparse_seconds / cost.context_tokens * 1e6 for cost in costs],
    }
    series = []
    for name, values in measured.items():
        flops = [predicted_flops(config, c, sparse=name == "sparse") for c in contexts]
        predicted = [value / rate * 1e6 for value in flops]
        series.append({"name": name, "x": contexts, "y": values})
        series.append({"name": f"{name}, FLOP model", "x": contexts, "y": predicted})
    return {
        "kind": "lines",
        "title": "What attention costs, over the context",
        "note": f"One layer, forward and backward, {config.index_topk} keys kept; the FLOP model "
        f"at the {rate / 1e9:,.0f} GFLOP/s of the dense layer at {longest.context_tokens:,} "
        "tokens.",
        "x_label": "context (tokens)",
        "y_label": "µs a token",
        "log_x": True,
        "log_y": True,
        "series": series,
    }


def write_cost_curve(config: ModelConfig, contexts: Sequence[int], device: str, page: Path) -> None:
    """Measure and write the block `page/06_attention_cost.json`; no contexts, no block."""
    if contexts:
        costs = measure_costs(config, contexts, device=device)
        write_json(page / "06_attention_cost.json", cost_block(config, costs))
