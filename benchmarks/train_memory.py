"""Peak memory of a training step of the `mini` shape: ours against transformers, no MTP.

Each side runs two steps in a process of its own, which builds nothing else; counted is the peak of
resident memory over what the imports take: weights, gradients, activations and, with `--dtype
bfloat16`, our low-precision copy. The peer has bf16 weights, which take least. `ratio` is the
peer's memory over ours. Options: `--rows`, `--context`, `--dtype` (ours).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from harness import RESULTS, add_options, pair_count
from peer import build_pair

from fivefold.manifest import describe_run
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import chunked_cross_entropy
from fivefold.train.compute import ComputeModel

CONFIG = preset("mini", num_nextn_predict_layers=0)


def main() -> None:
    """Compare the sides, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is None:
        compare_sides(options)
        return
    torch.set_num_threads(options.threads)
    before = resident_bytes()
    ids = torch.randint(0, CONFIG.vocab_size, (options.rows, options.context + 1))
    run = run_ours if options.side == "ours" else run_peer
    run(ids, getattr(torch, options.dtype))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(peak - before)


def resident_bytes() -> int:
    """Return what this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_ours(ids: torch.Tensor, dtype: torch.dtype) -> None:
    """Take two steps, the indexers frozen."""
    model = Transformer(CONFIG)
    initialise(model, CONFIG, torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    compute = ComputeModel(model.train(), dtype)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        compute.refresh()
        hidden = compute.model(ids[:, :-1]).hidden_BTD.flatten(0, 1)
        labels, head = ids[:, 1:].flatten(), compute.model.lm_head.weight
        chunked_cross_entropy(hidden, head, labels, chunk_tokens=1024).backward()
        compute.collect()


def run_peer(ids: torch.Tensor, dtype: torch.dtype) -> None:
    """Take two steps in bf16, whatever ours computes in."""
    del dtype
    peer = build_pair(CONFIG, torch.float32, (torch.bfloat16,))[1][torch.bfloat16].train()
    for _ in range(2):
        peer.zero_grad(set_to_none=True)
        peer(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss.backward()


def compare_sides(options: argparse.Namespace) -> None:
    """Run each side several times, write the JSON and print its summary line."""
    command = [sys.executable, __file__, "--rows", str(options.rows), "--dtype", options.dtype]
    command += ["--context", str(options.context), "--threads", str(options.threads)]
    peaks: dict[str, list[int]] = {"ours": [], "peer": []}
    for _ in range(pair_count(options)):
        for side, found in peaks.items():
            done = subprocess.run([*command, "--side", side], capture_output=True, check=True)
            found.append(int(done.stdout.split()[-1]))
    ratios = [peer / ours for ours, peer in zip(peaks["ours"], peaks["peer"], strict=True)]
    name = f"train_memory_{options.rows}x{options.context}_{options.dtype}"
    summary = {
        "name": name,
        "ratio": round(statistics.median(ratios), 3),
        "ours": round(statistics.median(peaks["ours"]) / 2**20),
        "peer": round(statistics.median(peaks["peer"]) / 2**20),
        "unit": "MiB",
        "pairs": len(ratios),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }
    made_by = describe_run(
        name, seed=0, device="cpu", threads=options.threads, config_hash="", command=[]
    )
    RESULTS.mkdir(exist_ok=True)
    record = {**summary, "peak_bytes": peaks, "made_by": made_by}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
