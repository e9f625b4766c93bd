"""Heat maps: a grid of cells whose opacity is the value, so that they read on light and dark."""

import math
from collections.abc import Sequence
from itertools import chain

from markupsafe import Markup

from fivefold.report.markup import element, join
from fivefold.report.scale import format_number

MOST_LABELS = 12
"""Labels on an axis; of more, evenly spaced ones are shown."""
CELL = 10
"""Units of the drawing a cell, which the page stretches."""


def draw_heatmap(
    values: Sequence[Sequence[float]],
    *,
    x_names: Sequence[str] | None,
    y_names: Sequence[str] | None,
    x_label: str,
    y_label: str,
    center: float | None,
) -> Markup:
    """Return a map of rows (top to bottom) and columns.

    Without `center` the smallest value is blank and the largest full; with it, blank is the centre,
    and values above and below it have different colours.
    """
    finite = [value for value in chain.from_iterable(values) if math.isfinite(value)]
    if not finite:
        return element("p", "No finite values.")
    low, high = min(finite), max(finite)
    columns = max(len(row) for row in values)
    cells = [
        _cell(row, column, value, low, high, center)
        for row, row_values in enumerate(values)
        for column, value in enumerate(row_values)
        if math.isfinite(value)
    ]
    svg = element(
        "svg",
        *cells,
        viewBox=f"0 0 {columns * CELL} {len(values) * CELL}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"Heat map of {len(values)} rows ({y_label}) by {columns} columns ({x_label}), "
        f"from {format_number(low)} to {format_number(high)}.",
    )
    height = min(420, max(90, 24 * len(values)))
    plot = element(
        "div",
        svg,
        _names(y_names, len(values), "y-tick", "top"),
        _names(x_names, columns, "x-tick", "left"),
        element("span", x_label, class_="x-label"),
        class_="plot heat",
        style=f"height:{height}px",
    )
    return join([_key(y_label, low, high, center), plot])


def _cell(
    row: int, column: int, value: float, low: float, high: float, center: float | None
) -> Markup:
    if center is None:
        strength = (value - low) / (high - low) if high > low else 0.5
        colour = "var(--c0)"
    else:
        reach = max(high - center, center - low) or 1.0
        strength = abs(value - center) / reach
        colour = "var(--c1)" if value > center else "var(--c0)"
    return element(
        "rect",
        element("title", f"row {row}, column {column}: {format_number(value)}"),
        x=column * CELL,
        y=row * CELL,
        width=CELL,
        height=CELL,
        style=f"fill:{colour};fill-opacity:{0.04 + 0.96 * strength:.3f}",
    )


def _names(names: Sequence[str] | None, count: int, class_: str, side: str) -> Markup:
    shown = names if names is not None else [str(index) for index in range(count)]
    stride = math.ceil(count / MOST_LABELS)
    return join(
        element(
            "span",
            str(name),
            class_=class_,
            style=f"{side}:{(index + 0.5) / count * 100:.2f}%",
        )
        for index, name in enumerate(shown[:count])
        if index % stride == 0
    )


def _key(y_label: str, low: float, high: float, center: float | None) -> Markup:
    if center is None:
        parts = [format_number(low), element("i", class_="ramp"), format_number(high)]
    else:
        parts = [
            format_number(low),
            element("i", class_="ramp two"),
            f"{format_number(high)}, blank at {format_number(center)}",
        ]
    return element(
        "p", element("span", y_label), element("span", *parts, class_="key"), class_="heat-head"
    )
