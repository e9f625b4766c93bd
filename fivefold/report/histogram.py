"""Histograms with a logarithmic height, for counts that span decades.

Columns are given with their names, so that they may be of any width on the axis that they stand
for. One of them may be marked: a value of its own among ranges. Surprise: a logarithm has no zero;
an empty column is blank, and a single count is the smallest visible one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fivefold.report.markup import element, join
from fivefold.report.scale import format_exact, format_number

HEIGHT = 190
"""Pixels of the columns' area."""
_LEAST_SHARE = 0.03
"""Height of a count of 1, as a share of the whole."""


@dataclass(frozen=True)
class Column:
    """A range of values, or one of its own, and how many there are."""

    name: str
    count: float
    is_marked: bool = False


def draw_histogram(columns: Sequence[Column], *, x_label: str, y_label: str) -> Markup:
    """Return the columns, their heights by the logarithm of their counts."""
    total = math.fsum(column.count for column in columns)
    top = max((column.count for column in columns), default=0.0)
    if top <= 0:
        return element("p", "Nothing was counted.")
    bars = [
        element(
            "li",
            element(
                "span",
                element("i", style=f"height:{height_of(column.count, top) * 100:.1f}%"),
                class_="column-track",
                title=f"{column.name}: {format_exact(column.count)} of {format_exact(total)} "
                f"({column.count / total:.2%})",
            ),
            element("span", format_number(column.count) if column.count else "", class_="count"),
            element("span", column.name, class_="column-name"),
            class_="marked" if column.is_marked else None,
        )
        for column in columns
    ]
    head = element(
        "figcaption",
        element("span", f"{y_label} by {x_label}; heights are logarithmic", class_="unit"),
    )
    summary = join(bars)
    columns_list = element("ol", summary, class_="columns", style=f"--height:{HEIGHT}px")
    scroll = element("div", columns_list, class_="scroll", tabindex=0, role="region")
    return element("figure", head, scroll, class_="chart histogram")


def height_of(count: float, top: float) -> float:
    """Return the share of the height that a count gets where `top` gets all of it."""
    if count <= 0:
        return 0.0
    if top <= 1:
        return 1.0
    share = math.log10(max(count, 1.0)) / math.log10(top)
    return _LEAST_SHARE + (1 - _LEAST_SHARE) * share
