"""Prometheus' text format, written by hand: a dozen counters need no library.

Source: Prometheus exposition formats, text format 0.0.4. Histograms are cumulative: the bucket of a
bound counts everything up to it, and `+Inf` counts all.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fivefold.serve.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Histogram:
    """Durations, by bucket."""

    def __init__(self) -> None:
        """Begin empty."""
        self._counts = [0] * (len(_BOUNDS_SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(_BOUNDS_SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, told: str) -> Iterator[str]:
        """Yield its lines."""
        yield f"# HELP {name} {told}"
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*_BOUNDS_SECONDS, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


@dataclass(frozen=True)
class Reading:
    """Numbers of one moment, taken between two steps."""

    gauges: Mapping[str, float]
    counters: Mapping[str, float]
    finished: Mapping[str, int]
    """Requests by the reason of their end."""
    accept_lengths: Mapping[int, int]
    """Verifications of drafts by the tokens that they added."""


def read_engine(engine: Engine) -> Reading:
    """Read an engine; runs on its thread."""
    load, sums = engine.load(), engine.statistics
    return Reading(
        gauges={
            "requests_running": load["running_requests"],
            "requests_waiting": load["waiting_requests"],
            "blocks_used": load["used_blocks"],
            "blocks_kept": load["kept_blocks"],
            "blocks_total": load["total_blocks"],
            "weight_version": load["version"],
            "paused": int(engine.is_paused),
        },
        counters={
            "steps_total": sums.steps,
            "computed_tokens_total": sums.computed_tokens,
            "prompt_tokens_total": sums.prompt_tokens,
            "cached_tokens_total": sums.cached_tokens,
            "output_tokens_total": sums.output_tokens,
            "drafted_tokens_total": sums.drafted_tokens,
            "preemptions_total": load["preemptions"],
            "evicted_blocks_total": load["evicted_blocks"],
        },
        finished=dict(sums.finished),
        accept_lengths=dict(sums.accept_lengths),
    )


_HELP = {
    "requests_running": "Requests that compute.",
    "requests_waiting": "Requests in the queue.",
    "blocks_used": "Cache blocks of running requests.",
    "blocks_kept": "Cache blocks of prefixes that may be found again.",
    "blocks_total": "Cache blocks in all.",
    "weight_version": "Version of the weights.",
    "paused": "1 while generation is paused.",
    "steps_total": "Forward passes of the main stack.",
    "computed_tokens_total": "Tokens that went through the model.",
    "prompt_tokens_total": "Prompt tokens of finished requests.",
    "cached_tokens_total": "Prompt tokens found in the cache.",
    "output_tokens_total": "Tokens generated.",
    "drafted_tokens_total": "Tokens drafted ahead of a verification.",
    "preemptions_total": "Requests sent back to the queue for want of blocks.",
    "evicted_blocks_total": "Kept blocks given to others.",
}


def expose(reading: Reading, histograms: Mapping[str, tuple[Histogram, str]]) -> str:
    """Return everything in Prometheus' text format."""
    lines: list[str] = []
    for kind, values in (("gauge", reading.gauges), ("counter", reading.counters)):
        for name, value in values.items():
            lines += [
                f"# HELP fivefold_{name} {_HELP[name]}",
                f"# TYPE fivefold_{name} {kind}",
                f"fivefold_{name} {value:g}" if value < 1e6 else f"fivefold_{name} {value:.0f}",
            ]
    lines += _labelled("finished_requests_total", "reason", reading.finished)
    lines += _labelled("accept_lengths_total", "tokens", reading.accept_lengths)
    for name, (histogram, told) in histograms.items():
        lines += histogram.lines(f"fivefold_{name}", told)
    return "\n".join(lines) + "\n"


def _labelled(name: str, label: str, values: Mapping[str, int] | Mapping[int, int]) -> list[str]:
    told = {
        "finished_requests_total": "Requests by the reason of their end.",
        "accept_lengths_total": "Verifications of drafts by the tokens that they added.",
    }[name]
    return [
        f"# HELP fivefold_{name} {told}",
        f"# TYPE fivefold_{name} counter",
        *(f'fivefold_{name}{{{label}="{key}"}} {count}' for key, count in sorted(values.items())),
    ]
