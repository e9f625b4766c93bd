"""Forward and backward of the `mini` shape: ours against transformers, same weights, no MTP.

The indexer is frozen on both sides, as transformers leaves it. Ours keeps fp32 weights and
gradients, and with `--dtype bfloat16` casts the weights and runs on the copy, casts included; the
peer runs with weights of its faster dtype. `--memory` compares the peaks of resident memory
instead, each side in a process of its own. Options: `--rows`, `--context`, `--dtype` (ours).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from harness import add_options, compare, pair_count, time_call
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
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory and not options.side:
        compare_memory(options)
        return
    torch.set_num_threads(options.threads)

    config = preset("mini", num_nextn_predict_layers=0)
    dtypes = (torch.float32, torch.bfloat16)
    ours, peers = build_pair(config, torch.float32, dtypes)
    generator = torch.Generator().manual_seed(1)
    shape = (options.rows, options.context + 1)
    ids = torch.randint(0, config.vocab_size, shape, generator=generator)
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

    def peer_step(model: torch.nn.Module) -> None:
        model.train().zero_grad(set_to_none=True)
        model(input_ids=inputs, labels=inputs, use_cache=False).loss.backward()

    if options.side:
        report_peak(our_step if options.side == "ours" else partial(peer_step, peers[dtypes[1]]))
        return
    for model in peers.values():
        model.train()
        peer_step(model)
    trials = {
        dtype: min(time_call(partial(peer_step, model)).wall_seconds for _ in range(2))
        for dtype, model in peers.items()
    }
    fastest = min(trials, key=lambda dtype: trials[dtype])
    peer = peers[fastest]
    compare(
        f"train_step_{options.rows}x{options.context}_{options.dtype}",
        our_step,
        lambda: peer_step(peer),
        work=labels.numel(),
        unit="tokens/s",
        options=options,
        detail={"peer_dtype": str(fastest).removeprefix("torch."), "ours_dtype": options.dtype},
    )


def report_peak(step: Callable[[], None]) -> None:
    """Run two steps and print by how many bytes they raised the process's peak memory."""
    before = peak_bytes()
    step()
    step()
    print(peak_bytes() - before)


def peak_bytes() -> int:
    """Return the peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare_memory(options: argparse.Namespace) -> None:
    """Measure each side in a fresh process; the peer in bf16, which needs less."""
    command = [sys.executable, __file__, "--memory", "--dtype", options.dtype]
    command += ["--rows", str(options.rows), "--context", str(options.context)]
    command += ["--threads", str(options.threads)]
    peaks: dict[str, list[int]] = {"ours": [], "peer": []}
    for _ in range(pair_count(options)):
        for side, found in peaks.items():
            done = subprocess.run([*command, "--side", side], capture_output=True, check=True)
            found.append(int(done.stdout.split()[-1]))
    ours, peer = (statistics.median(found) for found in peaks.values())
    summary = {
        "name": f"train_memory_{options.rows}x{options.context}_{options.dtype}",
        "ratio": round(peer / ours, 3),
        "ours": round(ours / 2**20),
        "peer": round(peer / 2**20),
        "unit": "MiB",
        "pairs": pair_count(options),
        "ratio_min": round(min(peaks["peer"]) / max(peaks["ours"]), 3),
        "ratio_max": round(max(peaks["peer"]) / min(peaks["ours"]), 3),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
