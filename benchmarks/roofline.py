"""Where each millisecond of a `mini` training step goes, against the peak of matrix products.

Runs the parts of the model alone, forward and backward, at the shape of the step: medians of
`--pairs` calls, times the number of layers that have the part. The peak is the best rate of a
square matrix product of 2,048 in the same dtype and process; FLOPs come from `plan.flops`. Prints a
Markdown table and, last, one JSON line whose `ratio` is the step's share of the peak. Options:
`--rows`, `--context`, `--dtype`.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import add_options, pair_count, time_call

from fivefold.models.config import ModelConfig
from fivefold.models.indexer import IndexQuery, select_mask, select_places
from fivefold.models.initialise import initialise
from fivefold.models.layer import GatedMlp
from fivefold.models.mla import LatentAttention
from fivefold.models.moe import MoE
from fivefold.models.preset import preset
from fivefold.models.surroundings import Surroundings
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import chunked_cross_entropy
from fivefold.ops.product import product
from fivefold.plan.flops import head_flops, layer_flops
from fivefold.train.compute import ComputeModel

PEAK_SIZE = 2048


@dataclass(frozen=True)
class Part:
    """A part of the step."""

    name: str
    layers: int
    """How often it stands in the model."""
    flops: float
    """Forward and backward of all of them, 0 where nothing is multiplied."""
    call: Callable[[], None]
    """Forward and backward of one."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    repeats = pair_count(options)

    config = preset("mini", num_nextn_predict_layers=0)
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    compute = ComputeModel(model.train(), dtype)
    compute.refresh()
    peak = matmul_peak(dtype, repeats)
    tokens = options.rows * options.context
    whole = milliseconds(whole_step(model, compute, options.rows, options.context), repeats)
    parts = cut(compute.model, config, options.rows, options.context, dtype)
    found = [(part, part.layers * milliseconds(part.call, repeats)) for part in parts]
    print(
        f"{options.rows} x {options.context}, {options.dtype}, {options.threads} threads, ", end=""
    )
    print(f"matmul peak {peak / 1e9:,.0f} GFLOP/s\n")
    print("| part | layers | ms | share of the step | GFLOP | share of the peak |")
    print("|---|---|---|---|---|---|")
    for part, spent in found:
        reached = f"{part.flops / (spent / 1e3) / peak:.0%}" if part.flops else "-"
        print(
            f"| {part.name} | {part.layers} | {spent:,.0f} | {spent / whole:.0%} | "
            f"{part.flops / 1e9:,.1f} | {reached} |"
        )
    flops = sum(part.flops for part in parts)
    rest = whole - sum(spent for _, spent in found)
    print(f"| norms, embedding, residuals, casts | | {rest:,.0f} | {rest / whole:.0%} | | |")
    share = flops / (whole / 1e3) / peak
    print(f"| **whole step** | | **{whole:,.0f}** | | {flops / 1e9:,.1f} | **{share:.0%}** |\n")
    summary = {
        "name": f"roofline_{options.rows}x{options.context}_{options.dtype}",
        "ratio": round(share, 3),
        "ours": round(tokens / whole * 1e3, 1),
        "peer": round(tokens * peak / flops, 1),
        "unit": "tokens/s",
        "pairs": repeats,
    }
    print(json.dumps(summary))


def milliseconds(call: Callable[[], None], repeats: int) -> float:
    """Return the median wall time after one call to warm up."""
    call()
    return statistics.median(time_call(call).wall_seconds for _ in range(repeats)) * 1e3


def matmul_peak(dtype: torch.dtype, repeats: int) -> float:
    """Return the FLOPs a second of a large square product."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    product(left, right)
    best = min(time_call(lambda: product(left, right)).wall_seconds for _ in range(3 * repeats))
    return 2 * PEAK_SIZE**3 / best


def whole_step(
    model: Transformer, compute: ComputeModel, rows: int, context: int
) -> Callable[[], None]:
    """Return forward, loss and backward, casts included; no optimizer."""
    ids_BT = torch.randint(0, model.config.vocab_size, (rows, context + 1))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        compute.refresh()
        hidden_TD = compute.model(ids_BT[:, :-1]).hidden_BTD.flatten(0, 1)
        labels_T = ids_BT[:, 1:].flatten()
        chunked_cross_entropy(
            hidden_TD, compute.model.lm_head.weight, labels_T, chunk_tokens=1024
        ).backward()
        compute.collect()

    return step


def cut(
    model: Transformer, config: ModelConfig, rows: int, context: int, dtype: torch.dtype
) -> list[Part]:
    """Return the parts of a step of `rows` x `context` tokens."""
    tokens, layers = rows * context, config.num_hidden_layers
    dense_block, block = model.layers[0], model.layers[-1]
    attention, moe, mlp = block.self_attn, block.mlp, dense_block.mlp
    assert isinstance(attention, LatentAttention)
    assert isinstance(moe, MoE)
    assert isinstance(mlp, GatedMlp)
    x_BTD = torch.randn(rows, context, config.hidden_size).to(dtype).requires_grad_()
    around = model.surroundings(torch.arange(context)[None])
    gathers = context > config.index_topk and around.gathers(config.index_topk)
    moe_layers = [i for i in range(layers) if config.is_moe(i)]
    flops = layer_flops(config, range(layers), context, sparse=True)
    dense_flops = layer_flops(config, range(layers), context, sparse=False)
    core = flops.attention_core if gathers else dense_flops.attention_core
    index_query = random_index_query(config, rows, context)

    def route() -> None:
        moe(x_BTD)[0].sum().backward()

    def select() -> None:
        if gathers:
            select_places(index_query, config.index_topk, None)
        elif context > config.index_topk:
            select_mask(index_query, config.index_topk, None)

    def feed_forward() -> None:
        mlp(x_BTD).sum().backward()

    def project_out() -> None:
        labels = torch.zeros(tokens, dtype=torch.int64)
        hidden = x_BTD.flatten(0, 1)
        chunked_cross_entropy(hidden, model.lm_head.weight, labels, chunk_tokens=1024).backward()

    attention_flops = 3 * (flops.attention_projections + core)
    index_flops = flops.indexer_scores if context > config.index_topk else 0.0
    return [
        Part("attention, without the selection", layers, tokens * attention_flops,
             without_selection(attention, x_BTD, around)),
        Part("index scores and selection", layers, tokens * index_flops, select),
        Part("router, experts, shared expert", len(moe_layers),
             3 * tokens * (flops.experts + flops.router), route),
        Part("dense feed-forward", layers - len(moe_layers), 3 * tokens * flops.feed_forward,
             feed_forward),
        Part("head and loss", 1, 3 * tokens * head_flops(config), project_out),
    ]  # fmt: skip


def without_selection(
    attention: LatentAttention,
    x_BTD: torch.Tensor,
    around: Surroundings,
) -> Callable[[], None]:
    """Return the layer with a selection made before, as where a layer shares that of another."""
    with torch.no_grad():
        selection = attention(x_BTD, around, None).selection

    def call() -> None:
        indexer, attention.indexer = attention.indexer, None
        attention(x_BTD, around, selection).y_BTD.sum().backward()
        attention.indexer = indexer

    return call


def random_index_query(config: ModelConfig, rows: int, context: int) -> IndexQuery:
    """Return random index queries, keys and head weights."""
    heads, width = config.index_n_heads or 0, config.index_head_dim
    shapes = (rows, context, heads, width), (rows, context, width), (rows, context, heads)
    return IndexQuery(*(torch.randn(*shape) for shape in shapes))


if __name__ == "__main__":
    main()
