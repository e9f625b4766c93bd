"""Ours against a peer, in turn, on a machine that may be busy.

Every pair runs both sides once, in alternating order; the ratio is the median over pairs, so that a
load that comes and goes hits both. CPU seconds stand beside wall seconds. The result is written to
`benchmarks/results/NAME.json` and printed as the last line.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fivefold.manifest import describe_run

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """One call."""

    wall_seconds: float
    cpu_seconds: float


def time_call(call: Callable[[], object]) -> Timing:
    """Run once and measure wall and CPU time of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--quick", action="store_true", help="3 pairs instead of 5")
    parser.add_argument("--pairs", type=int, help="interleaved pairs (default 5)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))


def pair_count(options: argparse.Namespace) -> int:
    """Return the number of interleaved pairs that the options ask for."""
    return options.pairs or (3 if options.quick else 5)


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    work: float,
    unit: str,
    options: argparse.Namespace,
    detail: dict[str, Any],
) -> dict[str, Any]:
    """Measure both sides, write the JSON and print its summary line.

    `work` is what one call of either side does, in units; `unit` names units a second.
    """
    for warm_up in (ours, peer):
        warm_up()
    runs: dict[str, list[Timing]] = {"ours": [], "peer": []}
    for pair in range(pair_count(options)):
        sides = [("ours", ours), ("peer", peer)]
        for side, call in sides if pair % 2 == 0 else reversed(sides):
            runs[side].append(time_call(call))
    ratios = [
        theirs.wall_seconds / mine.wall_seconds
        for mine, theirs in zip(runs["ours"], runs["peer"], strict=True)
    ]
    speeds = {side: [work / t.wall_seconds for t in timings] for side, timings in runs.items()}
    summary = {
        "name": name,
        "ratio": round(statistics.median(ratios), 3),
        "ours": round(statistics.median(speeds["ours"]), 1),
        "peer": round(statistics.median(speeds["peer"]), 1),
        "unit": unit,
        "pairs": len(ratios),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        **detail,
    }
    record = {
        **summary,
        "ratios": ratios,
        "wall_seconds": {s: [t.wall_seconds for t in timings] for s, timings in runs.items()},
        "cpu_seconds": {s: [t.cpu_seconds for t in timings] for s, timings in runs.items()},
        "load_average": os.getloadavg(),
        "platform": platform.platform(),
        "made_by": describe_run(
            name, seed=0, device="cpu", threads=options.threads, config_hash="", command=[]
        ),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return summary
