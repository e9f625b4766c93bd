"""Our sparse attention against our dense latent attention, forward and backward, on one long row.

`--what step`: the whole `mini` model with head and loss, layers recomputed, indexers learning on
what they select, as `adapt_dsa` trains. `--what layer`: one attention layer at a quarter of GLM-5's
heads (16 heads, latent 512 + 64, 8 index heads of 128, 512 keys kept), the indexer frozen, its
projections at GLM-5's full width. `--what attention`: that layer from queries and latents to the
heads' outputs, scan and selection included; projections, the same on both sides, are left out.
`--what decode`: the serving engine's attention of one token in that layer over `--length` cached
ones, projections left out, for they are the same on both sides. `peer` in the JSON is our own dense
form. `--curve FILE.svg` instead draws what a layer of `mini` costs, from 1K to `--length`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness import add_options, compare

from fivefold.models.config import ModelConfig
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.attention import attend_expanded
from fivefold.ops.chunked_cross_entropy import chunked_cross_entropy
from fivefold.ops.sparse_attention import attend_gathered
from fivefold.ops.sparse_index import sparse_index
from fivefold.serve.attend import IndexQueries, attend_decoded
from fivefold.serve.batch import Decoded
from fivefold.serve.pool import CacheRow
from fivefold.train.compute import ComputeModel
from fivefold.train.cost_curve import cost_block, layer_step, measure_costs, predicted_flops

QUARTER_GLM5 = preset(
    "glm5",
    num_hidden_layers=1,
    first_k_dense_replace=1,
    num_nextn_predict_layers=0,
    num_attention_heads=16,
    num_key_value_heads=16,
    index_n_heads=8,
    index_topk=512,
)

DECODED = 16
"""Tokens of one timing."""


def main() -> None:
    """Measure tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--what", choices=["step", "layer", "attention", "decode"], default="step")
    parser.add_argument("--length", type=int, default=16_384)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--curve", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    if options.curve:
        draw_curve(options.length, dtype, options.curve)
        return

    config = preset("mini", num_nextn_predict_layers=0) if options.what == "step" else QUARTER_GLM5
    if options.what == "step":
        sparse, dense = (model_step(config, options.length, dtype, s) for s in (True, False))
    elif options.what == "layer":
        sparse, dense = (
            layer_step(config, options.length, sparse=s, device="cpu", dtype=dtype)
            for s in (True, False)
        )
    elif options.what == "attention":
        sparse, dense = (attention_step(config, options.length, dtype, s) for s in (True, False))
    else:
        sparse, dense = (layer_decode(config, options.length, dtype, s) for s in (True, False))
    detail: dict[str, object] = {"dtype": options.dtype, "topk": config.index_topk}
    if options.what == "layer":
        flops = [predicted_flops(config, options.length, sparse=s) for s in (False, True)]
        detail["flops_ratio"] = round(flops[0] / flops[1], 2)
    compare(
        f"{options.what}_{options.length}_{options.dtype}",
        sparse,
        dense,
        work=DECODED if options.what == "decode" else options.length,
        unit="tokens/s",
        options=options,
        detail=detail,
    )


def model_step(
    config: ModelConfig, length: int, dtype: torch.dtype, sparse: bool
) -> Callable[[], None]:
    """Return one forward and backward of the whole model on a row of `length` tokens."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config)
    initialise(model, config, generator)
    model.train()
    if not sparse:
        model.set_index_topk(length)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(sparse or ".indexer." not in name)
    compute = ComputeModel(model, dtype, recompute=True)
    ids_BT = torch.randint(0, config.vocab_size, (1, length + 1), generator=generator)
    positions_BT = torch.arange(length)[None]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        compute.refresh()
        around = compute.model.surroundings(positions_BT, indexer="sparse" if sparse else "frozen")
        hidden_BTD, _, index_losses = compute.model(ids_BT[:, :-1], around=around)
        loss = chunked_cross_entropy(
            hidden_BTD.flatten(0, 1),
            compute.model.lm_head.weight,
            ids_BT[:, 1:].flatten(),
            chunk_tokens=2048,
        )
        for index_loss in index_losses:
            loss = loss + index_loss.total
        (loss / length).backward()
        compute.collect()

    return step


def attention_step(
    config: ModelConfig, length: int, dtype: torch.dtype, sparse: bool
) -> Callable[[], None]:
    """Return forward and backward of one layer's attention on a row of random queries and keys."""
    generator = torch.Generator().manual_seed(0)
    heads, latent = config.num_attention_heads, config.kv_lora_rank or 0
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    shapes = [
        (1, length, heads, nope),
        (1, length, heads, rope),
        (1, length, latent),
        (1, length, rope),
        (heads, nope + config.v_head_dim, latent),
    ]
    q_nope, q_rope, latents, ropes, kv_b = (
        torch.randn(*s, generator=generator).to(dtype).requires_grad_() for s in shapes
    )
    index_heads, channels = config.index_n_heads or 0, config.index_head_dim
    index_q = torch.randn(1, length, index_heads, channels, generator=generator)
    index_key = torch.randn(1, length, channels, generator=generator)
    index_weight = torch.randn(1, length, index_heads, generator=generator)
    scale = config.qk_head_dim**-0.5

    def step() -> None:
        if sparse:
            places = sparse_index(index_q, index_key, index_weight, config.index_topk)
            out = attend_gathered(q_nope, q_rope, latents, ropes, kv_b, places, scale)
        else:
            out = attend_expanded(q_nope, q_rope, latents, ropes, kv_b, None, scale)
        out.sum().backward()

    return step


def layer_decode(
    config: ModelConfig, length: int, dtype: torch.dtype, sparse: bool
) -> Callable[[], None]:
    """Return the engine's attention of one token over `length` cached ones in one layer."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    width = (config.kv_lora_rank or 0) + config.qk_rope_head_dim
    heads, channels = config.index_n_heads or 0, config.index_head_dim
    cache = CacheRow(random(length, width), random(length, channels))
    query_PHX = random(1, config.num_attention_heads, width) * width**-0.5
    index = IndexQueries(random(1, heads, channels), random(1, heads))
    decoded = Decoded(None, torch.arange(length)[None], None, length, 0)
    topk = config.index_topk if sparse else length

    @torch.inference_mode()
    def step() -> None:
        for _ in range(DECODED):
            attend_decoded(
                query_PHX, cache, decoded, index, None, topk=topk, rope=config.qk_rope_head_dim
            )

    return step


def draw_curve(longest: int, dtype: torch.dtype, path: Path) -> None:
    """Measure a layer of `mini` from 1K tokens on and draw it beside the FLOP model."""
    from matplotlib.figure import Figure

    contexts = [1024]
    while contexts[-1] * 2 <= longest:
        contexts.append(contexts[-1] * 2)
    config = preset("mini")
    block = cost_block(config, measure_costs(config, contexts, dtype=dtype))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(block["series"]):
        style = "--" if number % 2 else "o-"
        axes.plot(line["x"], line["y"], style, color=f"C{number // 2}", label=line["name"])
        print(line["name"], [round(value, 1) for value in line["y"]])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, [f"{context // 1024}K" for context in contexts])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("µs a token, forward and backward")
    axes.legend(frameon=False)
    figure.savefig(path)
    print(block["note"])


if __name__ == "__main__":
    main()
