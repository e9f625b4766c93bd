"""Page blocks: what a stage draws beside its curves.

A stage writes `page/NN_name.json` with a `kind`, or a PNG; they appear in the order of their file
names. Kinds: text, table, lines, bars, heatmap, histogram, samples, rollouts. A block of an unknown
kind, or one whose fields do not fit its kind, becomes a note on the page that names the file.
"""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fivefold.report.chart import Chart, Line, draw_chart
from fivefold.report.heatmap import draw_heatmap
from fivefold.report.histogram import Column, draw_histogram
from fivefold.report.markup import element
from fivefold.report.rollout import draw_rollouts
from fivefold.report.scale import format_exact, format_number

Block = Mapping[str, Any]


def draw_block(path: Path) -> Markup:
    """Return the section of one block file."""
    if path.suffix == ".png":
        return _draw_image(path)
    try:
        block = json.loads(path.read_text(encoding="utf-8"))
        kind = block["kind"]
        draw = _KINDS.get(kind)
        body = draw(block) if draw else _note(path, f"has the unknown kind {kind!r}")
        title, note = block.get("title"), block.get("note")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"cannot be drawn ({type(error).__name__}: {error})"
        return element("section", _note(path, reason[:200]), class_="block")
    return element(
        "section",
        element("h4", str(title)) if title else None,
        element("p", str(note), class_="note") if note else None,
        body,
        class_=f"block block-{kind}" if draw else "block",
    )


def _note(path: Path, reason: str) -> Markup:
    return element("p", f"Block {path.name} {reason}.", class_="warning")


def _draw_image(path: Path) -> Markup:
    caption = path.stem.lstrip("0123456789").strip("_").replace("_", " ").capitalize() or path.name
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    image = element("img", src=f"data:image/png;base64,{encoded}", alt=caption)
    return element(
        "section", element("h4", caption), element("figure", image), class_="block block-image"
    )


def _draw_text(block: Block) -> Markup:
    return element("pre", str(block["text"]), class_="text")


def _draw_table(block: Block) -> Markup:
    rows = [list(row) for row in block["rows"]]
    columns = [str(column) for column in block["columns"]]
    is_number = [
        all(isinstance(row[index], int | float) for row in rows) if rows else False
        for index in range(len(columns))
    ]
    head = element(
        "tr",
        *(
            element("th", column, scope="col", class_="number" if numeric else None)
            for column, numeric in zip(columns, is_number, strict=True)
        ),
    )
    body = [
        element(
            "tr",
            *(
                element(
                    "td",
                    _spell_cell(cell),
                    class_="number" if numeric else None,
                )
                for cell, numeric in zip(row, is_number, strict=True)
            ),
        )
        for row in rows
    ]
    table = element("table", element("thead", head), element("tbody", *body))
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Table")


def _draw_lines(block: Block) -> Markup:
    lines = [
        Line(
            str(series["name"]),
            [float(x) for x in series["x"]],
            [float(y) for y in series["y"]],
            colour=index,
            error=[float(e) for e in series["error"]] if series.get("error") else None,
        )
        for index, series in enumerate(block["series"])
    ]
    chart = Chart(
        title="",
        x_label=str(block.get("x_label", "")),
        y_label=str(block.get("y_label", "")),
        lines=lines,
        is_log_x=bool(block.get("log_x")),
        is_log_y=bool(block.get("log_y")),
    )
    return draw_chart(chart)


def _draw_bars(block: Block) -> Markup:
    bars = [(str(bar["name"]), float(bar["value"])) for bar in block["bars"]]
    longest = max((abs(value) for _, value in bars), default=0.0) or 1.0
    rows = [
        element(
            "li",
            element("span", name, class_="bar-name"),
            element(
                "span",
                element("i", style=f"width:{abs(value) / longest * 100:.1f}%"),
                class_="bar-track below" if value < 0 else "bar-track",
            ),
            element("span", format_number(value), class_="bar-value"),
        )
        for name, value in bars
    ]
    labels = " · ".join(str(block[key]) for key in ("x_label", "y_label") if block.get(key))
    return element(
        "figure",
        element("figcaption", element("span", labels, class_="unit")),
        element("ul", *rows, class_="bars"),
        class_="chart",
    )


def _draw_heatmap(block: Block) -> Markup:
    center = block.get("center")
    return draw_heatmap(
        [[float(value) for value in row] for row in block["values"]],
        x_names=block.get("x"),
        y_names=block.get("y"),
        x_label=str(block.get("x_label", "")),
        y_label=str(block.get("y_label", "")),
        center=float(center) if center is not None else None,
    )


def _draw_histogram(block: Block) -> Markup:
    columns = [
        Column(str(column["name"]), float(column["value"]), bool(column.get("is_marked")))
        for column in block["columns"]
    ]
    return draw_histogram(
        columns, x_label=str(block.get("x_label", "")), y_label=str(block.get("y_label", ""))
    )


def _draw_rollouts(block: Block) -> Markup:
    return draw_rollouts(block["rollouts"])


def _draw_samples(block: Block) -> Markup:
    items = [
        element(
            "li",
            element("span", str(sample["label"]), class_="sample-label"),
            element(
                "p",
                element("span", str(sample["prompt"]), class_="prompt"),
                element("span", str(sample["text"]), class_="continuation"),
            ),
        )
        for sample in block["samples"]
    ]
    return element("ol", *items, class_="samples")


def _spell_cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_exact(value)
    return "" if value is None else str(value)


_KINDS: Mapping[str, Callable[[Block], Markup]] = {
    "text": _draw_text,
    "table": _draw_table,
    "lines": _draw_lines,
    "bars": _draw_bars,
    "heatmap": _draw_heatmap,
    "histogram": _draw_histogram,
    "samples": _draw_samples,
    "rollouts": _draw_rollouts,
}
