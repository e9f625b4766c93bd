"""Rollouts as text in which every token is coloured by its advantage.

The colour lies behind the letters and its strength is the advantage's share of the largest one in
the block, so that text stays readable on light and dark pages; a token that does not train has
none. Pointing at a token shows its numbers; the same numbers stand in a folded table, for those who
do not point. Surprise: a token's decoded text may be a part of a character, which shows as U+FFFD.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fivefold.report.markup import element, join
from fivefold.report.scale import format_number

_MOST_STRENGTH = 0.62
"""Opacity behind the token with the largest advantage."""
_MOST_LOG_RATIO = 50.0
"""Bound of the exponent; what is beyond is broken anyhow."""
_COLUMNS = ("advantage", "ratio", "engine", "trainer", "after")


def draw_rollouts(rollouts: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the rollouts with one scale of colours for all of them."""
    numbers = [_numbers_of(rollout) for rollout in rollouts]
    known = [abs(row[0]) for rows in numbers for row in rows if row[0] is not None]
    largest = max((value for value in known if math.isfinite(value)), default=0.0)
    items = [
        element(
            "li",
            element("span", str(rollout["label"]), class_="sample-label"),
            element(
                "p",
                element("span", str(rollout.get("prompt", "")), class_="prompt"),
                *(
                    _draw_token(str(token), row, largest)
                    for token, row in zip(rollout["tokens"], rows, strict=True)
                ),
            ),
            _fold_numbers([str(token) for token in rollout["tokens"]], rows),
        )
        for rollout, rows in zip(rollouts, numbers, strict=True)
    ]
    return join([_key(largest), element("ol", *items, class_="samples rollouts")])


def _numbers_of(rollout: Mapping[str, Any]) -> list[list[float | None]]:
    """Return advantage, ratio of trainer to engine, and the log-probabilities of each token."""
    count = len(rollout["tokens"])
    streams = [
        rollout.get(name) or [None] * count
        for name in ("advantages", "engine_logprobs", "trainer_logprobs", "learned_logprobs")
    ]
    rows = []
    for advantage, engine, trainer, after in zip(*streams, strict=True):
        ratio = None
        if engine is not None and trainer is not None:
            ratio = math.exp(min(trainer - engine, _MOST_LOG_RATIO))
        rows.append([advantage, ratio, engine, trainer, after])
    assert len(rows) == count, "a value of each stream for each token"
    return rows


def _draw_token(text: str, row: Sequence[float | None], largest: float) -> Markup:
    advantage = row[0]
    shown = text.replace("\n", "↵\n").replace("\t", "⇥\t")
    if advantage is None:
        return element("span", shown, class_="token untrained")
    share = abs(advantage) / largest if largest and math.isfinite(advantage) else 0.0
    side = "better" if advantage > 0 else "worse" if advantage < 0 else "even"
    return element(
        "span",
        shown,
        class_=f"token {side}",
        style=f"--strength:{share * _MOST_STRENGTH:.3f}",
        data_token=json.dumps([None if x is None else float(f"{x:.5g}") for x in row]),
    )


def _fold_numbers(tokens: Sequence[str], rows: Sequence[Sequence[float | None]]) -> Markup:
    head = element(
        "tr",
        element("th", "token", scope="col"),
        *(element("th", name, scope="col", class_="number") for name in _COLUMNS),
    )
    body = [
        element(
            "tr",
            element("td", json.dumps(token, ensure_ascii=False)[1:-1]),
            *(element("td", "" if x is None else format_number(x), class_="number") for x in row),
        )
        for token, row in zip(tokens, rows, strict=True)
    ]
    table = element("table", element("thead", head), element("tbody", *body))
    note = (
        "Ratio: trainer over engine, the same weights in both. Engine, trainer, after: "
        "log-probabilities in nats; after: in the trainer when the batch was learned."
    )
    return element(
        "details",
        element("summary", "Numbers"),
        element("p", note, class_="small-print"),
        element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Tokens"),
    )


def _key(largest: float) -> Markup:
    return element(
        "p",
        element("span", "advantage"),
        element(
            "span",
            format_number(-largest),
            element("i", class_="ramp worth"),
            f"+{format_number(largest)}",
            class_="key",
        ),
        class_="heat-head",
    )
