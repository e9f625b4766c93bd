"""Which metrics share a chart: the few that matter get a title, the rest get one each.

Nothing is hidden: a metric that no group claims is drawn on its own, and one that never changes is
listed with its value. Metric names follow `room/quantity_unit`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from fivefold.report.chart import SMOOTH_FROM, Chart, Line, draw_chart
from fivefold.report.markup import element, join
from fivefold.report.record import TOKENS_METRIC, Curve, StageRecord
from fivefold.report.scale import format_exact

GZIP_METRIC = "data/heldout_gzip_bits_per_byte"
"""What `gzip -9` needs for the held-out text; drawn as a level to beat."""


@dataclass(frozen=True)
class Group:
    """Metrics that are read together."""

    title: str
    unit: str
    pattern: str
    """Regular expression that a metric's whole name matches; group `name` is its short name."""
    is_noisy: bool = False
    first_colour: int = 0


GROUPS = (
    Group(
        "Loss",
        "nats a token",
        r"(?P<name>train|validation)/loss_nats",
        is_noisy=True,
        first_colour=0,
    ),
    Group("Held-out text", "bits a byte", r"(?P<name>validation)/bits_per_byte", first_colour=1),
    Group(
        "Multi-token prediction, by depth",
        "nats a token",
        r"train/mtp(?P<name>\d+)_loss_nats",
        is_noisy=True,
        first_colour=2,
    ),
    Group("Learning rate", "", r"train/(?P<name>(?:\w+_)?lr(?:_\w+)?)", first_colour=3),
    Group(
        "Gradient norm", "", r"train/(?P<name>(?:\w+_)?grad_norm)", is_noisy=True, first_colour=5
    ),
    Group(
        "Speed",
        "tokens a second",
        r"train/(?P<name>tokens_per_second)",
        is_noisy=True,
        first_colour=6,
    ),
    Group(
        "Expert load above its fair share",
        "fraction",
        r"train/max_violation_(?P<name>mean|worst)",
        is_noisy=True,
        first_colour=4,
    ),
)

SMOOTHING_NOTE = "Faint lines are single records, full lines their running mean."
_UNITS = (
    ("bits_per_byte", "bits a byte"),
    ("tokens_per_second", "tokens a second"),
    ("per_second", "a second"),
    ("nats", "nats"),
    ("seconds", "seconds"),
    ("bytes", "bytes"),
    ("tokens", "tokens"),
)


def draw_curves(stage: StageRecord, gzip_bits_per_byte: float | None) -> Markup | None:
    """Return all metrics of a stage: grouped charts, single charts, then those without a course."""
    changing = {name: curve for name, curve in stage.curves.items() if len(set(curve.values)) > 1}
    steady = {name: curve for name, curve in stage.curves.items() if name not in changing}
    figures = []
    claimed: set[str] = set()
    for group in GROUPS:
        members = [name for name in changing if re.fullmatch(group.pattern, name)]
        if members:
            claimed.update(members)
            figures.append(_draw_group(group, members, stage, gzip_bits_per_byte))
    others = [name for name in changing if name not in claimed]
    figures += [_draw_single(name, stage) for name in sorted(others)]
    longest = max((len(curve.values) for curve in changing.values()), default=0)
    parts = [
        element("div", *figures, class_="charts") if figures else None,
        element("p", SMOOTHING_NOTE, class_="small-print") if longest >= SMOOTH_FROM else None,
        _list_steady(steady) if steady else None,
    ]
    return join(parts) if any(parts) else None


def _draw_group(
    group: Group, members: Sequence[str], stage: StageRecord, gzip_bits_per_byte: float | None
) -> Markup:
    lines = []
    for index, metric in enumerate(sorted(members)):
        match = re.fullmatch(group.pattern, metric)
        assert match is not None, "members were chosen by this pattern"
        curve = stage.curves[metric]
        name = match["name"].removesuffix("_grad_norm").replace("_", " ")
        name = f"depth {name}" if name.isdigit() else name
        is_noisy = group.is_noisy and metric.startswith("train/")
        lines.append(Line(name, curve.x, curve.values, group.first_colour + index, False, is_noisy))
    if group.unit == "bits a byte" and gzip_bits_per_byte is not None:
        ends = [min(lines[0].x), max(lines[0].x)]
        lines.append(Line("gzip -9", ends, [gzip_bits_per_byte] * 2, 7, is_reference=True))
        members = [*members, GZIP_METRIC]
    if len(lines) == 1:
        lines = [replace(lines[0], name="")]
    caption = _caption(members, stage)
    return draw_chart(Chart(group.title, stage.x_label, group.unit, lines, caption=caption))


def _draw_single(metric: str, stage: StageRecord) -> Markup:
    curve = stage.curves[metric]
    room, _, quantity = metric.partition("/")
    unit = next((unit for suffix, unit in _UNITS if quantity.endswith(suffix)), "")
    title = (quantity or room).replace("_", " ").capitalize()
    x_label = "step" if metric == TOKENS_METRIC else stage.x_label
    line = Line("", curve.x, curve.values, 5, is_noisy=True)
    caption = _caption([metric], stage)
    return draw_chart(Chart(title, x_label, unit, [line], height=120, caption=caption))


def _caption(metrics: Sequence[str], stage: StageRecord) -> Markup:
    names = [element("code", name) for name in metrics]
    non_finite = sum(stage.curves[name].non_finite for name in metrics if name in stage.curves)
    if non_finite:
        names.append(element("em", f"{non_finite} values were not finite."))
    return Markup(" ").join(names)


def _list_steady(curves: dict[str, Curve]) -> Markup:
    rows = []
    for name, curve in sorted(curves.items()):
        value = format_exact(curve.values[0]) if curve.values else "never finite"
        if len(curve.values) > 1:
            value += f" in all {len(curve.values)} records"
        rows.append(element("div", element("dt", element("code", name)), element("dd", value)))
    return element("dl", *rows, class_="steady")
