"""Forward and backward of the `mini` shape: ours against transformers, same weights, no MTP.

The indexer is frozen on both sides, as transformers leaves it. Ours keeps fp32 weights and
gradients, and with `--dtype bfloat16` casts the weights and runs on the copy, casts included; the
peer runs with weights of its faster dtype. Options: `--rows`, `--context`, `--dtype` (ours),
`--device cuda`, where memory is compared too, and `--shape small --layers N` for a larger model.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from harness import add_options, compare, time_call
from peer import build_pair

from fivefold.models.preset import preset
from fivefold.ops.chunked_cross_entropy import chunked_cross_entropy
from fivefold.train.compute import ComputeModel


def main() -> None:
    """Measure tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=["mini", "small"], default="mini")
    parser.add_argument("--layers", type=int, help="layers of the model (default: the shape's)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    layers = {} if options.layers is None else {"num_hidden_layers": options.layers}
    config = preset(options.shape, num_nextn_predict_layers=0, **layers)
    dtypes = (torch.float32, torch.bfloat16)
    ours, peers = build_pair(config, torch.float32, dtypes)
    ours, peers = ours.to(options.device), {d: p.to(options.device) for d, p in peers.items()}
    generator = torch.Generator().manual_seed(1)
    shape = (options.rows, options.context + 1)
    ids = torch.randint(0, config.vocab_size, shape, generator=generator).to(options.device)
    inputs, labels = ids[:, :-1], ids[:, 1:].flatten()
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    compute = ComputeModel(ours.train(), getattr(torch, options.dtype))

    def our_step() -> None:
        ours.zero_grad(set_to_none=True)
        compute.refresh()
        model = compute.model
        hidden = model(inputs).hidden_BTD.flatten(0, 1)
        loss = chunked_cross_entropy(hidden, model.lm_head.weight, labels, chunk_tokens=1024)
        (loss / labels.numel()).backward()
        compute.collect()
        finish(options.device)

    def peer_step(model: torch.nn.Module) -> None:
        model.train().zero_grad(set_to_none=True)
        model(input_ids=inputs, labels=inputs, use_cache=False).loss.backward()
        finish(options.device)

    for model in peers.values():
        model.train()
        peer_step(model)
    trials = {
        dtype: min(time_call(partial(peer_step, model)).wall_seconds for _ in range(2))
        for dtype, model in peers.items()
    }
    fastest = min(trials, key=lambda dtype: trials[dtype])
    peer = peers[fastest]
    detail = {"peer_dtype": str(fastest).removeprefix("torch."), "ours_dtype": options.dtype}
    where = ""
    if options.device == "cuda":
        where = f"_cuda_{options.shape}"
        sides = {"ours": (ours, our_step), "peer": (peer, partial(peer_step, peer))}
        peaks = {f"{side}_mib": peak_mib(*pair) for side, pair in sides.items()}
        detail |= {"card": torch.cuda.get_device_name(), **peaks}
    compare(
        f"train_step_{options.rows}x{options.context}_{options.dtype}{where}",
        our_step,
        lambda: peer_step(peer),
        work=labels.numel(),
        unit="tokens/s",
        options=options,
        detail=detail,
    )


def finish(device: str) -> None:
    """Wait until the device has computed what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(model: torch.nn.Module, step: Callable[[], object]) -> int:
    """Return the most that a step allocates over weights and copies of them, in MiB."""
    step()
    model.zero_grad(set_to_none=True)
    standing = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return round((torch.cuda.max_memory_allocated() - standing) / 2**20)


if __name__ == "__main__":
    main()
