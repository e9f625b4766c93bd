"""Line charts: SVG that stretches with the page, labels that do not.

The drawing fills its box whatever the window's width (`preserveAspectRatio="none"`), strokes keep
their width, and all text is HTML placed over it, so that letters have one size from a telephone
to a wide screen. Colours are CSS variables: the same chart serves light and dark pages.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from fivefold.report.markup import element, join
from fivefold.report.scale import Axis, fit_axis, format_number, format_ticks

WIDTH = 1000
"""Horizontal units of the drawing; vertical units are CSS pixels."""
BINS = 160
"""Longest horizontal resolution: each bin keeps its smallest and largest value."""
LABEL_PIXELS = 15
"""Smallest vertical distance of two labels at the right edge."""
SMOOTH_FROM = 60
"""Points from which a noisy line gets a running mean."""
COLOURS = 8
"""Size of the palette in `style.css`."""
BAND_ERRORS = 2
"""Standard errors to either side of a line that its band covers: about 95% of a normal's."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    """Index into the palette."""
    is_reference: bool = False
    """A level to compare with: dashed."""
    is_noisy: bool = False
    """Draw it faint, with its running mean in full colour."""
    error: Sequence[float] | None = None
    """Standard error of each value, drawn as a band; NaN where it is unknown, and no band."""
    is_part: bool = False
    """An earlier stretch of a line of the same name, which bears the label."""


@dataclass(frozen=True)
class Span:
    """A stretch of the horizontal axis with a name, as a stage of a run."""

    name: str
    begin: float
    end: float
    note: str = ""
    """A word below the name."""


@dataclass(frozen=True)
class Chart:
    """A titled set of lines over common axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    is_log_x: bool = False
    is_log_y: bool = False
    height: int = 210
    """Pixels of the plot area."""
    caption: Markup | None = None
    """Small print below: the metrics' names, what was left out."""
    y_holds: Sequence[float] = ()
    """Values that the vertical axis shows, whether a line comes near them or not."""
    spans: Sequence[Span] = ()
    """Named stretches, told apart by lines; they take the place of horizontal ticks."""


def draw_chart(chart: Chart) -> Markup:
    """Return the figure of a chart; one without drawable points says so."""
    drawn = [_drawable(line, chart) for line in chart.lines]
    dropped = sum(len(a.y) - len(b.y) for a, b in zip(chart.lines, drawn, strict=True))
    drawn = [line for line in drawn if line.y]
    head = element(
        "figcaption",
        element("span", chart.title, class_="chart-title") if chart.title else None,
        element("span", chart.y_label, class_="unit") if chart.y_label else None,
    )
    notes = [chart.caption]
    if dropped:
        notes.append(element("span", f" Points that the axes cannot show: {dropped}."))
    small_print = element("p", join(notes), class_="small-print") if any(notes) else None
    if not drawn:
        return element("figure", head, element("p", "No points."), small_print, class_="chart")
    ends = [x for span in chart.spans for x in (span.begin, span.end)]
    x_axis = _fit_x_axis([*(x for line in drawn for x in line.x), *ends], is_log=chart.is_log_x)
    reach = [*chart.y_holds, *(y for line in drawn for y in _reach(line))]
    y_axis = fit_axis(reach, is_log=chart.is_log_y)
    labelled = [line for line in drawn if not line.is_part]
    fits_edge = len(labelled) <= 6 and max(len(line.name) for line in labelled) <= 14
    names_at_edge = len(labelled) > 1 and fits_edge
    legend = None if names_at_edge or not any(line.name for line in drawn) else _legend(labelled)
    plot = element(
        "div",
        _svg(chart, drawn, x_axis, y_axis),
        _tick_labels(chart, x_axis, y_axis),
        _end_labels(chart, labelled, y_axis, with_names=names_at_edge)
        if len(labelled) * LABEL_PIXELS <= chart.height
        else None,
        element("span", chart.x_label, class_="x-label"),
        class_="plot named" if names_at_edge else "plot",
        style=f"height:{chart.height}px",
        data_x=json.dumps([x_axis.low, x_axis.high, int(x_axis.is_log)]),
        data_x_label=chart.x_label,
    )
    return element("figure", head, legend, plot, small_print, class_="chart")


def thin_out(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Keep at most `2 * BINS + 2` points: both ends, and each bin's smallest and largest value."""
    if len(x) <= 2 * BINS + 2:
        return list(x), list(y)
    kept = {0, len(x) - 1}
    for index in range(BINS):
        members = range(index * len(x) // BINS, (index + 1) * len(x) // BINS)
        kept.add(min(members, key=y.__getitem__))
        kept.add(max(members, key=y.__getitem__))
    order = sorted(kept)
    return [x[index] for index in order], [y[index] for index in order]


def running_mean(y: Sequence[float], window: int) -> list[float]:
    """Return centred means over `window` values, over fewer at both ends."""
    total, sums = 0.0, [0.0]
    for value in y:
        total += value
        sums.append(total)
    half = window // 2
    means = []
    for index in range(len(y)):
        reach = min(half, index, len(y) - 1 - index)
        low, high = index - reach, index + reach + 1
        means.append((sums[high] - sums[low]) / (high - low))
    return means


def colour_of(index: int) -> str:
    """Return the CSS colour of a palette entry."""
    return f"var(--c{index % COLOURS})"


def _fit_x_axis(values: list[float], *, is_log: bool) -> Axis:
    """Return an axis without margins, from zero where the first value is close to it."""
    low, high = min(values), max(values)
    if low == high:
        return fit_axis(values, is_log=is_log)
    starts_at_zero = not is_log and 0 < low < 0.1 * high
    return Axis(0.0 if starts_at_zero else low, high, is_log)


def _drawable(line: Line, chart: Chart) -> Line:
    """Return the line without points that are not finite, or not positive on a log axis."""
    points = [
        (x, y)
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(x)
        and math.isfinite(y)
        and (x > 0 or not chart.is_log_x)
        and (y > 0 or not chart.is_log_y)
    ]
    x, y = [point[0] for point in points], [point[1] for point in points]
    error = None
    if line.error is not None and not chart.is_log_y:
        known = dict(zip(line.x, line.error, strict=True))
        error = [known[a] if math.isfinite(known[a]) else math.nan for a in x]
    return replace(line, x=x, y=y, error=error)


def _reach(line: Line) -> list[float]:
    """Return the values of a line and the edges of its band."""
    if line.error is None:
        return list(line.y)
    pairs = list(zip(line.y, line.error, strict=True))
    edges = [y + side * BAND_ERRORS * error for y, error in pairs for side in (-1, 1)]
    return [*line.y, *(edge for edge in edges if math.isfinite(edge))]


def _svg(chart: Chart, lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> Markup:
    grid = [
        element("line", x1=0, x2=WIDTH, y1=at, y2=at)
        for at in (_round(_from_top(y_axis, tick, chart.height)) for tick in y_axis.ticks(4))
    ]
    subject = ", ".join(part for part in (chart.title, chart.y_label) if part)
    summary = f"{subject} over {chart.x_label}. " + " ".join(
        f"{line.name or 'From'} {format_number(line.y[0])} to {format_number(line.y[-1])}."
        for line in lines
    )
    return element(
        "svg",
        element("g", *grid, *_dividers(chart, x_axis), class_="grid"),
        *(
            _draw_band(stretch, x_axis, y_axis, chart.height)
            for line in lines
            for stretch in _stretches(line)
        ),
        *(_draw_line(line, x_axis, y_axis, chart.height) for line in lines),
        viewBox=f"0 0 {WIDTH} {chart.height}",
        preserveAspectRatio="none",
        role="img",
        aria_label=summary,
    )


def _dividers(chart: Chart, x_axis: Axis) -> list[Markup]:
    """Return a line where each span but the first begins."""
    places = [_round(x_axis.fraction(span.begin) * WIDTH) for span in chart.spans[1:]]
    return [element("line", x1=at, x2=at, y1=0, y2=chart.height) for at in places]


def _stretches(line: Line) -> list[Line]:
    """Return the parts of a line without a gap whose errors are known."""
    parts, points = list[Line](), list[tuple[float, float, float]]()
    for point in [*zip(line.x, line.y, line.error or [], strict=False), (0.0, 0.0, math.nan)]:
        if math.isfinite(point[2]):
            points.append(point)
        elif points:
            x, y, error = zip(*points, strict=True)
            parts.append(replace(line, x=x, y=y, error=error))
            points = []
    return parts


def _draw_band(line: Line, x_axis: Axis, y_axis: Axis, height: int) -> Markup:
    """Return the area between `BAND_ERRORS` standard errors above a line and below it."""
    assert line.error is not None, "the caller chose lines with errors"
    edges = []
    for side in (1, -1):
        edge = [y + side * BAND_ERRORS * error for y, error in zip(line.y, line.error, strict=True)]
        x, y = thin_out(line.x, edge)
        edges.append((x, y) if side > 0 else (x[::-1], y[::-1]))
    x, y = [*edges[0][0], *edges[1][0]], [*edges[0][1], *edges[1][1]]
    outline = _path(x, y, x_axis, y_axis, height)
    return element("path", d=f"{outline}Z", style=f"fill:{colour_of(line.colour)}", class_="band")


def _draw_line(line: Line, x_axis: Axis, y_axis: Axis, height: int) -> Markup:
    x, y = thin_out(line.x, line.y)
    path = _path(x, y, x_axis, y_axis, height)
    pairs = zip(line.x, line.error or [], strict=False)
    errors = {a: [float(f"{error:.2g}")] for a, error in pairs if math.isfinite(error)}
    points = json.dumps(
        [
            [float(f"{a:.5g}"), float(f"{b:.4g}"), *errors.get(a, [])]
            for a, b in zip(x, y, strict=True)
        ]
    )
    hover = {"data_name": line.name, "data_points": points}
    colour = f"stroke:{colour_of(line.colour)}"
    if line.is_reference:
        return element("path", d=path, style=colour, class_="reference")
    if line.is_noisy and len(line.y) >= SMOOTH_FROM:
        means = running_mean(line.y, max(5, len(line.y) // 25))
        stride = max(1, len(means) // BINS)
        picked = [*range(0, len(means) - 1, stride), len(means) - 1]
        smooth = _path(
            [line.x[i] for i in picked], [means[i] for i in picked], x_axis, y_axis, height
        )
        return join(
            [
                element("path", d=path, style=colour, class_="faint", **hover),
                element("path", d=smooth, style=colour),
            ]
        )
    drawn = [element("path", d=path, style=colour, **hover)]
    if len(x) <= 32:
        # A segment of no length with round ends is a dot that the stretching leaves round.
        dots = " ".join(f"M{corner}h0" for corner in path[1:].split("L"))
        drawn.append(element("path", d=dots, style=colour, class_="dots"))
    return join(drawn)


def _path(x: Sequence[float], y: Sequence[float], x_axis: Axis, y_axis: Axis, height: int) -> str:
    corners = (
        f"{_round(x_axis.fraction(a) * WIDTH)} {_round(_from_top(y_axis, b, height))}"
        for a, b in zip(x, y, strict=True)
    )
    return "M" + "L".join(corners)


def _tick_labels(chart: Chart, x_axis: Axis, y_axis: Axis) -> Markup:
    x_ticks, y_ticks = x_axis.ticks(3), y_axis.ticks(4)
    labels = [
        element(
            "span",
            text,
            class_="y-tick",
            style=f"top:{_round(_from_top(y_axis, tick, chart.height))}px",
        )
        for tick, text in zip(y_ticks, format_ticks(y_ticks), strict=True)
    ]
    if chart.spans:
        return join([*labels, *(_span_label(span, x_axis) for span in chart.spans)])
    labels += [
        element(
            "span",
            text,
            class_="x-tick",
            style=f"left:{_round(x_axis.fraction(tick) * 100)}%",
        )
        for tick, text in zip(x_ticks, format_ticks(x_ticks), strict=True)
    ]
    return join(labels)


def _span_label(span: Span, x_axis: Axis) -> Markup:
    centre = x_axis.fraction((span.begin + span.end) / 2)
    return element(
        "span",
        element("b", span.name),
        element("small", span.note) if span.note else None,
        class_="x-tick span-label",
        style=f"left:{_round(centre * 100)}%",
    )


def _end_labels(chart: Chart, lines: Sequence[Line], y_axis: Axis, *, with_names: bool) -> Markup:
    """Return each line's last value (and name) at the right edge, moved apart where they touch."""
    ordered = sorted(lines, key=lambda line: -line.y[-1])
    tops = [_from_top(y_axis, line.y[-1], chart.height) for line in ordered]
    for index in range(1, len(tops)):
        tops[index] = max(tops[index], tops[index - 1] + LABEL_PIXELS)
    bottom = float(chart.height)
    for index in reversed(range(len(tops))):
        tops[index] = min(tops[index], bottom)
        bottom = tops[index] - LABEL_PIXELS
    return join(
        element(
            "span",
            f"{line.name} " if with_names else None,
            element("b", format_number(line.y[-1])),
            class_="end-label",
            style=f"top:{_round(top)}px;color:{colour_of(line.colour)}",
        )
        for line, top in zip(ordered, tops, strict=True)
    )


def _legend(lines: Sequence[Line]) -> Markup:
    entries = [
        element("li", element("i", style=f"background:{colour_of(line.colour)}"), line.name)
        for line in lines
    ]
    return element("ul", *entries, class_="legend")


def _from_top(axis: Axis, value: float, height: int) -> float:
    return (1 - axis.fraction(value)) * height


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
