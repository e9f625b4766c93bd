"""What becomes of activations on a GPU: kept, moved to the host, computed again, or bounded.

Forward and backward of dense layers in bf16 over fp32 weights, the casts of the weights included.
Treatments take turns, one step each; times are those of CUDA events. `peak_bytes` is what a step
allocates at most over what stands between steps (weights, copies of them), gradients included;
`held_bytes` the most that layers keep for their backward, by the offloader's ledger. Steps of two
treatments are also profiled: how fast copies are, for how much of their time some kernel runs, and
for how much of the kernels' time some copy does. Options: `--case`, `--layers`, `--tokens`.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, add_options, pair_count
from torch.profiler import ProfilerActivity, profile

from fivefold.manifest import describe_run
from fivefold.models.config import ModelConfig
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import chunked_cross_entropy
from fivefold.parallel.offload import LEAST_BYTES
from fivefold.train.compute import ComputeModel

_WIDE = {
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "head_dim": 64,
}
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "1024": ({}, 16, 8192),
    "1024_long": ({}, 12, 32_768),
    "4096": (_WIDE, 12, 8192),
}
"""Fields of the shape `small`, dense layers, and tokens of the only row; `4096` takes 110 GiB."""
APART = "every fourth moved, copies over three layers"
"""A treatment whose copies may take the time of three layers instead of one."""
BOUNDS = (0.6, 0.3)
"""Shares of what all layers keep to which `activation_bytes` bounds them."""


@dataclass
class Treatment:
    """A way to treat activations, and what its steps measured."""

    name: str
    compute: ComputeModel
    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    held_bytes: int | None = None
    out_bytes: int | None = None


class Trainer:
    """Steps of one model on one row."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        with torch.device("cuda"):
            self.model = Transformer(config)
        initialise(self.model, config, torch.Generator("cuda").manual_seed(0))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".indexer." not in name)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, config.vocab_size, (1, tokens + 1), generator=generator).cuda()
        self._inputs, self._labels = ids[:, :-1], ids[:, 1:].flatten()

    def treat(self, name: str, **choices: Any) -> Treatment:
        """Return a treatment, which has a bf16 copy of the weights of its own."""
        return Treatment(name, ComputeModel(self.model, torch.bfloat16, **choices))

    def step(self, compute: ComputeModel) -> None:
        """Run forward and backward."""
        self.model.zero_grad(set_to_none=True)
        compute.refresh()
        hidden = compute.model(self._inputs).hidden_BTD.flatten(0, 1)
        head = compute.model.lm_head.weight
        loss = chunked_cross_entropy(hidden, head, self._labels, chunk_tokens=2048)
        (loss / len(self._labels)).backward()
        compute.collect()

    def measure(self, treatment: Treatment) -> None:
        """Time one step and read the peaks."""
        self.model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        standing = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        offloader = treatment.compute.offloader
        sent = 0
        if offloader is not None:
            offloader.ledger.peak_bytes, sent = 0, offloader.ledger.out_bytes
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.step(treatment.compute)
        end.record()
        torch.cuda.synchronize()
        treatment.milliseconds.append(begin.elapsed_time(end))
        treatment.peak_bytes = torch.cuda.max_memory_allocated() - standing
        if offloader is not None:
            offloader.ledger.check_idle()
            treatment.held_bytes = offloader.ledger.peak_bytes
            treatment.out_bytes = offloader.ledger.out_bytes - sent


def main() -> None:
    """Measure one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--case", choices=list(CASES), default="1024")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "needs CUDA\n")
    fields, layers, tokens = CASES[options.case]
    layers, tokens = options.layers or layers, options.tokens or tokens
    config = preset(
        "small",
        **fields,
        num_hidden_layers=layers,
        first_k_dense_replace=layers,
        num_nextn_predict_layers=0,
        index_topk=32_768,
    )
    trainer = Trainer(config, tokens)
    treatments = [
        trainer.treat("kept"),
        trainer.treat("kept, counted", activation_bytes=10**15),
        trainer.treat("moved", offload=True),
        trainer.treat("every fourth moved", offload=tuple(range(0, layers - 4, 4))),
        trainer.treat(APART, offload=tuple(range(0, layers - 4, 4))),
        trainer.treat("recomputed", recompute=True),
        trainer.treat("moved inputs, recomputed", recompute=True, offload=True),
    ]
    apart = next(treatment for treatment in treatments if treatment.name == APART)
    for treatment, window in ((treatments[3], 1), (apart, 3)):
        offloader = treatment.compute.offloader
        assert offloader is not None, "some of its layers move"
        offloader.move(offloader.moving, window)
    for treatment in treatments:
        trainer.measure(treatment)
    everything = treatments[1].held_bytes
    assert everything is not None, "the second treatment counts"
    for share in BOUNDS:
        bound = int(share * everything)
        treatments.append(trainer.treat(f"bound of {share:.0%}", activation_bytes=bound))
        trainer.measure(treatments[-1])
    for treatment in treatments:
        trainer.measure(treatment)
        treatment.milliseconds.clear()
    for number in range(pair_count(options)):
        for treatment in treatments if number % 2 == 0 else reversed(treatments):
            trainer.measure(treatment)
    copies = {
        treatment.name: profile_copies(trainer, treatment.compute)
        for treatment in (treatments[2], apart)
    }
    record(options, config, tokens, treatments, copies)


def profile_copies(trainer: Trainer, compute: ComputeModel) -> dict[str, dict[str, float]]:
    """Return bytes, rate and what runs beside them, of the copies of one step each way."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            trainer.step(compute)
            torch.cuda.synchronize()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    timed = [event for event in events if event.get("ph") == "X" and "dur" in event]
    kernels = _merge([_span(event) for event in timed if event.get("cat") == "kernel"])
    busy = sum(end - begin for begin, end in kernels) / 1e6
    found = {}
    for way in ("DtoH", "HtoD"):
        moved = [
            event
            for event in timed
            if event.get("cat") == "gpu_memcpy"
            and way in event["name"]
            and event["args"].get("bytes", 0) >= LEAST_BYTES
        ]
        size = sum(event["args"]["bytes"] for event in moved)
        seconds = sum(event["dur"] for event in moved) / 1e6
        hidden = sum(_overlap(_span(event), kernels) for event in moved) / 1e6
        if moved:
            found[way] = {
                "copies": len(moved),
                "bytes": size,
                "bytes_per_second": size / seconds,
                "seconds": seconds,
                "share_beside_kernels": hidden / seconds,
                "share_of_kernels": hidden / busy,
            }
    return found


def _span(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _merge(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of spans, in order."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def _overlap(span: tuple[float, float], merged: Sequence[tuple[float, float]]) -> float:
    return sum(max(0.0, min(span[1], end) - max(span[0], begin)) for begin, end in merged)


def record(
    options: argparse.Namespace,
    config: ModelConfig,
    tokens: int,
    treatments: Sequence[Treatment],
    copies: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Write the JSON and print its summary line."""
    name = f"offload_gpu_{options.case}"
    rows = [
        {
            "treatment": treatment.name,
            "milliseconds": round(statistics.median(treatment.milliseconds), 2),
            "least": round(min(treatment.milliseconds), 2),
            "most": round(max(treatment.milliseconds), 2),
            "peak_mib": round(treatment.peak_bytes / 2**20),
            "held_mib": held / 2**20 if (held := treatment.held_bytes) is not None else None,
            "moved_mib": out / 2**20 if (out := treatment.out_bytes) is not None else None,
        }
        for treatment in treatments
    ]
    summary = {
        "name": name,
        "device": torch.cuda.get_device_name(),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "tokens": tokens,
        "steps": pair_count(options),
        "treatments": rows,
        "copies": copies,
    }
    made_by = describe_run(
        name, seed=0, device="cuda", threads=options.threads, config_hash="", command=[]
    )
    everything = {treatment.name: treatment.milliseconds for treatment in treatments}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**summary, "all_milliseconds": everything, "made_by": made_by}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
