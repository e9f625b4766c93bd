"""What a post-training stage shows in the report beside its curves: rollouts, rho, accounts.

Curves come from `metrics.jsonl`, as those of all stages. The blocks come from the loop's own state
and are written at each examination, so that a stage that runs, or was killed, shows what it has.
"""

from collections.abc import Mapping
from pathlib import Path

from fivefold.artifact import write_json
from fivefold.rl.config import AdvantageConfig, DistillationConfig
from fivefold.rl.loop_config import LoopConfig
from fivefold.rl.mismatch import EDGES
from fivefold.rl.progress import Progress, failures_by_outcome

_ONE = EDGES.index(0.0) + 1
"""Bin that begins with a rho of exactly 1."""


def write_page(progress: Progress, config: LoopConfig, page: Path) -> None:
    """Write the blocks of a stage."""
    if progress.judged:
        write_json(page / "20_tokens.json", _token_block(progress, config))
    if progress.shown:
        write_json(page / "30_rollouts.json", _answer_block(progress, config))
    if any(progress.rho_histogram) or progress.rho_nan_tokens:
        write_json(page / "40_rho.json", _rho_block(progress))
    write_json(page / "50_counts.json", _count_block(progress, config))
    if progress.reasons:
        block = _reason_block("rollouts", progress.reasons, progress.reason_examples)
        write_json(page / "51_reasons.json", block)
    if progress.heldout_reasons:
        found = progress.heldout_reasons, progress.heldout_reason_examples
        write_json(page / "52_heldout_reasons.json", _reason_block("held-out answers", *found))


def _token_block(progress: Progress, config: LoopConfig) -> dict[str, object]:
    judge = "The advantage is the reward against that of the prompt's other rollouts."
    if config.algorithm.distillation is not None:
        judge = _spell_teaching(config.algorithm.distillation, config.algorithm.advantage)
    return {
        "kind": "rollouts",
        "title": "What each sampled token was worth",
        "note": f"Rollouts of one batch, the worst judged first. {judge} Point at a token for its "
        "numbers.",
        "rollouts": progress.judged,
    }


def _spell_teaching(config: DistillationConfig, advantage: AdvantageConfig | None) -> str:
    """Say what a teacher makes of a token."""
    gap = "log teacher - log student"
    if config.weight != 1:
        gap = f"{config.weight:g} times {gap}"
    if config.discount == 1:
        gap += ", summed from there to the end"
    elif config.discount:
        gap += f", summed from there on with {config.discount:g} a token as the discount"
    added = ", added to that of the reward" if advantage is not None else ""
    return f"The advantage of a token is {gap}{added}."


def _answer_block(progress: Progress, config: LoopConfig) -> dict[str, object]:
    return {
        "kind": "samples",
        "title": "The same held-out prompts along training",
        "note": f"Temperature {config.evaluation.temperature:g}, the same seeds each time.",
        "samples": progress.shown,
    }


def _rho_block(progress: Progress) -> dict[str, object]:
    """Return tokens of all batches by rho, with those of exactly 1 apart and empty ends left out.

    The column beside exactly 1 is always there, so that nothing to see is seen.
    """
    counts = list(progress.rho_histogram)
    counts[_ONE] -= progress.rho_exact_tokens
    filled = [place for place, count in enumerate(counts) if count]
    first = min([*filled, _ONE - 1])
    last = max([*filled, _ONE])
    columns: list[dict[str, object]] = [
        {"name": bin_name(place), "value": counts[place]} for place in range(first, last + 1)
    ]
    nan_tokens = progress.rho_nan_tokens
    apart = f" Not drawn: {nan_tokens:,} tokens that have no rho (NaN)." if nan_tokens else ""
    exact = {"name": "exactly 1", "value": progress.rho_exact_tokens, "is_marked": True}
    columns.insert(_ONE - first, exact)
    return {
        "kind": "histogram",
        "title": "Trainer over engine: rho of all trained tokens",
        "note": "The probability of a sampled token under the trainer over that under the engine, "
        "with the same weights. Columns narrow by decades towards 1; the height is logarithmic."
        + apart,
        "x_label": "rho",
        "y_label": "tokens",
        "columns": columns,
    }


def bin_name(place: int) -> str:
    """Return the range of rho of a histogram's bin in words."""
    if place == 0:
        return f"below {_spell_edge(0)}"
    if place == len(EDGES):
        return f"{_spell_edge(place - 1)} and more"
    return f"{_spell_edge(place - 1)} to {_spell_edge(place)}"


def _spell_edge(place: int) -> str:
    distance = 2 ** abs(EDGES[place]) - 1
    if distance == 0:
        return "1"
    if distance < 0.15:
        return f"1 {'+' if EDGES[place] > 0 else '-'} {distance:.0e}".replace("e-0", "e-")
    return f"{2 ** EDGES[place]:.3g}"


def _count_block(progress: Progress, config: LoopConfig) -> dict[str, object]:
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
        *(
            [f"rollouts {words}: {name}", counts.get(name, 0)]
            for words, names in failures_by_outcome(config).items()
            for name in names
        ),
    ]
    return {
        "kind": "table",
        "title": "What became of groups and rollouts",
        "note": f"Groups of {config.group_size}. A rollout that could not be judged "
        + (
            "is left out; it"
            if config.needs_rewards
            else "stays, for a teacher judges it; its reward"
        )
        + " never counts as 0.",
        "columns": ["what", "number"],
        "rows": rows,
    }


def _reason_block(
    what: str, reasons: Mapping[str, int], examples: Mapping[str, str]
) -> dict[str, object]:
    rows = sorted(reasons.items(), key=lambda item: -item[1])
    return {
        "kind": "table",
        "title": f"Why {what} could not be judged",
        "note": "In the words of the first one of each kind; reasons that differ in numbers "
        "and quotations alone are one kind.",
        "columns": ["reason", what],
        "rows": [[examples.get(kind, kind), count] for kind, count in rows],
    }
