"""Our sparse attention against our dense latent attention, forward and backward, on one long row.

`--what step`: the whole `mini` model with head and loss, layers recomputed, indexers learning on
what they select, as `adapt_dsa` trains. `--what layer`: one attention layer at a quarter of GLM-5's
heads (16 heads, latent 512 + 64, 8 index heads of 128, 512 keys kept), the indexer frozen.
`--what decode`: one token of that layer after `--length` cached ones. `peer` in the JSON is our own
dense form. `--curve FILE.svg` instead draws what a layer of `mini` costs, from 1K to `--length`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness import add_options, compare

from fivefold.models.cache import LatentCache
from fivefold.models.config import ModelConfig
from fivefold.models.initialise import initialise
from fivefold.models.mla import LatentAttention
from fivefold.models.preset import preset
from fivefold.models.surroundings import make_surroundings
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import chunked_cross_entropy
from fivefold.ops.rotary import inverse_frequencies, rotary_angles
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
    parser.add_argument("--what", choices=["step", "layer", "decode"], default="step")
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


def layer_decode(
    config: ModelConfig, length: int, dtype: torch.dtype, sparse: bool
) -> Callable[[], None]:
    """Return the attention of one layer for one token after `length` cached ones."""
    generator = torch.Generator().manual_seed(0)
    layer = LatentAttention(config, 0)
    initialise(layer, config, generator)
    layer.to(dtype)
    layer.topk = config.index_topk if sparse else length + 1
    cache = LatentCache(config, 1, length + 1, dtype=dtype)
    for tensor in cache.layers[0]:
        assert tensor is not None, "the layer has an indexer"
        tensor.normal_(generator=generator)
    cache.advance(length)
    x_BTD = torch.randn(1, 1, config.hidden_size, generator=generator).to(dtype)
    speeds_R, factor = inverse_frequencies(config.rope_parameters, config.qk_rope_head_dim)
    turn_BTR = rotary_angles(torch.tensor([[length]]), speeds_R, factor)
    around = make_surroundings(turn_BTR, None, cache, queries=1, absorbed=True, indexer="frozen")

    @torch.inference_mode()
    def step() -> None:
        for _ in range(DECODED):
            layer(x_BTD, around, None)

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
    series = block["series"]
    assert isinstance(series, list), "a block of lines has series"
    for number, line in enumerate(series):
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
