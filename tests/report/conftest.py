"""A made-up run directory with every kind of metric and block, at any length."""

import json
import math
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

MANIFEST = {
    "recipe": "nano",
    "commit": "4be1f6d20c9a77b1e5+changes",
    "config_hash": "9f31c2aa01d4e0b7",
    "lock_hash": "77ab0d2c51e9f3a8",
    "seed": 0,
    "device": "cpu",
    "threads": 2,
    "hardware": {"cpu": "a quiet 2-core machine", "cores": 2, "memory_bytes": 8589934592},
    "versions": {"python": "3.11.2", "torch": "2.13.0", "fivefold": "0.1.0"},
    "started": "2026-03-01T09:30:00+00:00",
    "command": [".venv/bin/fivefold", "run", "nano", "--run-dir", "runs/my nano"],
}
CONFIG = {
    "corpus": {
        "profile": "auto",
        "heldout_bytes": 300_000,
        "packages": ["python3-doc", "anarchism"],
    },
    "tokenizer": {"vocab_size": 2048, "digits": "triples"},
    "tokens": {"contexts": [256, 512], "pack": "best_fit"},
    "pretrain": {"total_tokens": 1_300_000, "muon": {"lr": 0.02, "momentum": 0.95}},
    "midtrain": {"total_tokens": 400_000, "context_tokens": 512},
    "evaluate": {"tasks": ["copy"]},
}
SAMPLES = (
    (0, "of\x00 the@ (eeh2 )s,t a .ni <b>"),
    (100, " the of the and in a to that the is of a be"),
    (200, " was the state of the people, and the workers of the state is not be a free"),
    (325, " was that every society needs a court or a police, which the workers\nwould not keep."),
)
RESUMED_BLOCKS = {
    "10_samples": {
        "kind": "samples",
        "title": "What the model writes along training",
        "note": "The same prompt, continued greedily at four moments.",
        "samples": [
            {"label": f"step {step}", "prompt": "The only argument left", "text": text}
            for step, text in SAMPLES
        ],
    },
    "20_load": {
        "kind": "heatmap",
        "title": "Share of tokens that each expert received",
        "note": "One row a layer; a flat row is a balanced one.",
        "x_label": "expert",
        "y_label": "layer",
        "x": None,
        "y": ["1", "2", "3", "MTP"],
        "values": [
            [1 / 16 + 0.02 * math.sin(layer * 5 + expert * 1.7) for expert in range(16)]
            for layer in range(4)
        ],
        "center": 0.0625,
    },
    "30_position": {
        "kind": "lines",
        "title": "Loss by position in the row",
        "note": "Later tokens have more context.",
        "x_label": "position",
        "y_label": "nats a token",
        "log_x": True,
        "log_y": False,
        "series": [
            {
                "name": name,
                "x": [2**i for i in range(9)],
                "y": [start - 0.25 * i + 0.01 * i * i for i in range(9)],
            }
            for name, start in (("dense", 4.9), ("sparse", 5.0))
        ],
    },
}
CORPUS_BLOCKS = {
    "10_sources": {
        "kind": "table",
        "title": "Sources",
        "note": "Texts are fetched by package name; licences are those of the packages.",
        "columns": ["source", "licence", "documents", "text bytes", "share"],
        "rows": [
            ["python3-doc", "PSF", 512, 8_123_456, 0.541],
            ["anarchism", "GFDL", 310, 4_654_321, 0.31],
            ["fortunes-zh", "GPL (http://example.org/licence)", 9_000, 2_200_000, 0.149],
        ],
    },
    "20_drops": {
        "kind": "bars",
        "title": "Documents dropped, by reason",
        "note": "",
        "x_label": "documents",
        "y_label": "reason",
        "bars": [
            {"name": "shorter than 200 characters", "value": 812},
            {"name": "duplicate", "value": 140},
            {"name": "unreadable", "value": 3},
        ],
    },
    "30_example": {"kind": "text", "title": "A document", "text": "第一章\nIt was <i>late</i>.\n"},
}


def pretrain_records(steps: int, tokens_per_step: int, start: float, seed: int) -> list[dict]:
    noise = random.Random(seed)
    records = []
    for step in range(1, steps + 1):
        done = step / steps
        loss = 2.9 + (start - 2.9) * math.exp(-6 * done) + noise.gauss(0, 0.06)
        warm = min(1.0, done * 20)
        record = {"step": step, "train/loss_nats": loss, "train/tokens": step * tokens_per_step}
        record |= {
            f"train/mtp{d}_loss_nats": loss + 0.35 * d + noise.gauss(0, 0.05) for d in (1, 2, 3)
        }
        record |= {
            "train/aux_loss": 0.01 + 0.004 * math.exp(-4 * done),
            "train/lr": 0.02 * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))),
            "train/muon_grad_norm": 0.4 + 3 * math.exp(-20 * done) + abs(noise.gauss(0, 0.08)),
            "train/adamw_grad_norm": 0.9 + 2 * math.exp(-9 * done) + abs(noise.gauss(0, 0.08)),
            "train/tokens_per_second": 3900
            + noise.gauss(0, 150)
            - (900 if 0.5 < done < 0.55 else 0),
            "train/batch_tokens": tokens_per_step,
            "train/skipped_steps": 0,
            "train/max_violation_mean": 0.3 + 1.2 * math.exp(-8 * done) + abs(noise.gauss(0, 0.03)),
            "train/max_violation_worst": 0.7 + 2.2 * math.exp(-8 * done) + abs(noise.gauss(0, 0.1)),
        }
        records.append(record)
        if step % max(1, steps // 8) == 0:
            bits = 1.84 + 2.2 * math.exp(-5 * done)
            validation = {"validation/loss_nats": bits * 1.65, "validation/bits_per_byte": bits}
            records.append({"step": step, **validation})
    return records


def write_run(run: Path, *, steps: int = 325) -> Path:
    """Write a run whose fifth stage was killed and whose sixth has not begun."""
    run.mkdir(parents=True)
    stages = {
        "corpus": (
            31.2,
            [{"step": 0, "data/documents": 9822, "data/raw_bytes": 15_100_000}],
            CORPUS_BLOCKS,
        ),
        "tokenizer": (3.4, [], {}),
        "tokens": (
            9.8,
            [
                {
                    "step": 0,
                    "data/heldout_gzip_bits_per_byte": 2.0912,
                    "data/heldout_bytes": 300_211,
                    "data/train_tokens": 5_301_220,
                }
            ],
            {},
        ),
        "pretrain": (330.4, pretrain_records(steps, 4096, 7.6, seed=1), RESUMED_BLOCKS),
        "midtrain": (None, pretrain_records(40, 4096, 3.1, seed=2), {}),
    }
    (run / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    (run / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    clock, lines = 1_772_357_400.0, []
    for name, (seconds, records, blocks) in stages.items():
        (run / name / "page").mkdir(parents=True)
        marker = {"stage": name, "config_hash": "00", "inputs": {}, "output_digest": "11"}
        finished = seconds is not None
        path = run / name / ("finished.json" if finished else "started.json")
        path.write_text(json.dumps({**marker, "seconds": seconds}), encoding="utf-8")
        for record in records:
            clock += (seconds or 60.0) / len(records)
            lines.append(json.dumps({"stage": name, "time_seconds": clock, **record}) + "\n")
        for stem, block in blocks.items():
            text = json.dumps(block, ensure_ascii=False)
            (run / name / "page" / f"{stem}.json").write_text(text, encoding="utf-8")
    (run / "corpus" / "page" / "40_length_histogram.png").write_bytes(grey_png(64, 8))
    checkpoint = run / "pretrain" / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    (checkpoint / "model.safetensors").write_bytes(b"")
    (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return run


def grey_png(width: int, height: int) -> bytes:
    """Return a valid grey-scale PNG with a ramp."""
    row = b"\x00" + bytes(column * 255 // width for column in range(width))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * height)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the made-up run into a directory of its own."""

    def make(name: str = "nano", *, steps: int = 120) -> Path:
        return write_run(tmp_path / name, steps=steps)

    return make
