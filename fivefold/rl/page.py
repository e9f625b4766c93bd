"""What a post-training stage shows in the report: rewards with errors, lengths, rho, rollouts.

Drawn from the loop's own record, so that a stage that was killed and went on shows all of it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fivefold.artifact import write_json
from fivefold.rl.loop_config import LoopConfig
from fivefold.rl.mismatch import EDGES
from fivefold.rl.progress import FAILURES, Progress

_POINTS = 200
"""Most points of a line."""
_TOKENS_A_LINE = 32


def write_page(progress: Progress, config: LoopConfig, page: Path) -> None:
    """Write the blocks of a stage."""
    for name, title, quantity in (
        ("10_heldout_pass", "Held-out pass rate", "eval_pass_rate"),
        ("11_heldout_reward", "Held-out reward", "eval_reward_mean"),
        ("12_pass", "Pass rate while training", "pass_rate"),
        ("13_reward", "Reward while training", "reward_mean"),
    ):
        error = quantity.replace("_rate", "_error").replace("_mean", "_error")
        _write_lines(
            page / f"{name}.json",
            title,
            "The mean over prompts, and two standard errors to either side.",
            [
                _series(progress, "mean", quantity),
                _series(progress, "+ 2 standard errors", quantity, (error, 2.0)),
                _series(progress, "- 2 standard errors", quantity, (error, -2.0)),
            ],
            "reward" if "reward" in quantity else "pass rate",
        )
    _write_group(progress, page / "20_teacher.json", "Gap to the teachers", "nats", "teacher_kl")
    _write_group(
        progress,
        page / "21_sources.json",
        "Held-out pass rate by source",
        "rate",
        "eval_pass_rate_",
    )
    _write_group(
        progress, page / "22_length.json", "Response length", "tokens", "response_tokens_mean"
    )
    _write_group(
        progress, page / "23_entropy.json", "Entropy of sampled tokens", "nats", "sampled_entropy"
    )
    _write_group(
        progress, page / "24_clipped.json", "Tokens clipped or masked", "share", "clip", "masked"
    )
    _write_rho(progress, page / "30_rho.json")
    _write_counts(progress, config, page / "31_counts.json")
    for number, row in enumerate(progress.judged):
        _write_judged(row, page / f"{50 + number}_tokens.json")
    if progress.shown:
        write_json(
            page / "40_rollouts.json",
            {
                "kind": "samples",
                "title": "The same held-out prompts along training",
                "note": f"Temperature {config.evaluation.temperature:g}, the same seeds each time.",
                "samples": progress.shown,
            },
        )


def _series(
    progress: Progress, name: str, quantity: str, beside: tuple[str, float] | None = None
) -> dict[str, object]:
    """Return the course of a quantity, with so many times another one added."""
    key = f"rl/{quantity}"
    points = [(row["batch"], row) for row in progress.history if key in row]
    points = points[:: max(math.ceil(len(points) / _POINTS), 1)]
    values = [
        row[key] + (0.0 if beside is None else beside[1] * row.get(f"rl/{beside[0]}", 0.0))
        for _, row in points
    ]
    return {"name": name, "x": [batch for batch, _ in points], "y": values}


def _write_group(progress: Progress, path: Path, title: str, unit: str, *starts: str) -> None:
    """Draw all quantities whose names begin so."""
    begins = tuple(f"rl/{start}" for start in starts)
    keys = dict.fromkeys(k for row in progress.history for k in row if k.startswith(begins))
    names = [key.removeprefix("rl/") for key in keys]
    _write_lines(path, title, None, [_series(progress, name, name) for name in names], unit)


def _write_lines(
    path: Path, title: str, note: str | None, series: Sequence[dict], unit: str
) -> None:
    drawn = [line for line in series if line["x"]]
    if drawn:
        write_json(
            path,
            {
                "kind": "lines",
                "title": title,
                "note": note,
                "x_label": "batch",
                "y_label": unit,
                "series": drawn,
            },
        )


def _write_rho(progress: Progress, path: Path) -> None:
    """Draw the tokens of all batches by rho, empty ends left out."""
    counts = progress.rho_histogram
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return
    bars = [
        {"name": _bin_name(place), "value": counts[place] / sum(counts)}
        for place in range(filled[0], filled[-1] + 1)
    ]
    write_json(
        path,
        {
            "kind": "bars",
            "title": "Trainer over engine: rho of all trained tokens",
            "note": "The probability of a sampled token under the trainer over that under the "
            "engine, with the same weights; 1 where both compute the same.",
            "x_label": "rho",
            "y_label": "share of tokens",
            "bars": bars,
        },
    )


def _write_judged(row: Mapping[str, Any], path: Path) -> None:
    """Colour the tokens of a rollout by what they are worth."""
    lines = range(0, len(row["tokens"]), _TOKENS_A_LINE)
    write_json(
        path,
        {
            "kind": "heatmap",
            "title": f"What each token is worth: {row['label']}",
            "note": "From the last batch that trained; the advantage of each sampled token, in "
            f"lines of {_TOKENS_A_LINE}. {' '.join(row['tokens'])}",
            "x_label": "token",
            "y_label": "line",
            "x": row["tokens"] if len(lines) == 1 else None,
            "y": [row["tokens"][begin] for begin in lines],
            "values": [row["worth"][begin : begin + _TOKENS_A_LINE] for begin in lines],
            "center": 0.0,
        },
    )


def _bin_name(place: int) -> str:
    if place == 0:
        return f"below {2 ** EDGES[0]:.3g}"
    if place == len(EDGES):
        return f"{2 ** EDGES[-1]:.3g} and more"
    return f"{2 ** EDGES[place - 1]:.3g} to {2 ** EDGES[place]:.3g}"


def _write_counts(progress: Progress, config: LoopConfig, path: Path) -> None:
    """Say what became of all groups and rollouts."""
    counts = progress.counts
    rows: list[list[object]] = [
        ["batches", progress.batch],
        ["updates", progress.updates],
        ["tokens sampled", progress.sampled_tokens],
        ["groups drawn", counts.get("drawn", 0)],
        ["groups trained on", counts.get("kept", 0)],
        ["groups dropped: equal rewards", counts.get("dropped_no_variance", 0)],
        ["groups dropped: too few judged", counts.get("dropped_invalid", 0)],
        *([f"rollouts left out: {name}", counts.get(name, 0)] for name in FAILURES),
    ]
    write_json(
        path,
        {
            "kind": "table",
            "title": "What became of groups and rollouts",
            "note": f"Groups of {config.group_size}. A rollout that could not be judged is left "
            "out; it never counts as reward 0.",
            "columns": ["what", "number"],
            "rows": rows,
        },
    )
