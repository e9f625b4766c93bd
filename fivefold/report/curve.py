"""Which metrics share a chart: the few that matter get a title, the rest get one each.

Nothing is hidden: a metric that no group claims is drawn on its own, one that never changes is
listed with its value, and equal curves are one line that bears all their names. Metric names follow
`room/quantity_unit`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from fivefold.report.chart import BAND_ERRORS, SMOOTH_FROM, Chart, Line, draw_chart
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
    has_error: bool = False
    """Are there metrics `..._error` beside those `..._mean` and `..._rate`?"""


_RL_GROUPS = (
    Group(
        "Held-out pass rate",
        "share of answers",
        r"rl/eval_pass_rate(?P<name>.*)",
        has_error=True,
    ),
    Group("Held-out reward", "", r"rl/eval_reward_mean(?P<name>.*)", has_error=True),
    Group(
        "Pass rate while training",
        "share of rollouts",
        r"rl/(?P<name>pass)_rate",
        is_noisy=True,
        has_error=True,
        first_colour=1,
    ),
    Group(
        "Reward while training",
        "",
        r"rl/(?P<name>reward)_mean",
        is_noisy=True,
        has_error=True,
        first_colour=1,
    ),
    Group(
        "Response length",
        "tokens",
        r"rl/(?P<name>response_tokens_mean|response_tokens_max|eval_response_tokens)",
        is_noisy=True,
        first_colour=2,
    ),
    Group("Entropy of sampled tokens", "nats", r"rl/(?P<name>sampled_entropy)_nats", True, 3),
    Group("Gap to the teachers", "nats a token", r"rl/teacher_kl_nats(?P<name>.*)", True, 3),
    Group(
        "Tokens clipped or masked",
        "share of tokens",
        r"rl/(?P<name>\w*(?:clip|masked)\w*)_fraction",
        is_noisy=True,
        first_colour=4,
    ),
    Group(
        "Trainer against engine",
        "nats a token",
        r"rl/(?P<name>engine_kl(?:_low_variance)?)_nats",
        is_noisy=True,
        first_colour=5,
    ),
    Group(
        "Groups of a batch",
        "groups",
        r"rl/groups_(?P<name>\w+)",
        is_noisy=True,
        first_colour=4,
    ),
    Group(
        "Rollouts left out",
        "rollouts",
        r"rl/rollouts_(?P<name>\w+)",
        is_noisy=True,
        first_colour=6,
    ),
    Group("Held-out answers not judged", "answers", r"rl/eval_(?P<name>failed)_rollouts"),
    Group("Time of a batch", "seconds", r"rl/(?P<name>sample|train)_seconds", True, 6),
)
GROUPS = (
    *_RL_GROUPS,
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
    Group("Passes over each source", "epochs", r"mixture/epochs_(?P<name>.*)", first_colour=2),
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
BAND_NOTE = f"Bands: {BAND_ERRORS} standard errors to either side, over prompts."
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
    """Return all metrics of a stage: grouped charts, single charts, then those without a course.

    The level of gzip is left out where a stage learns answers alone.
    """
    gzip_bits_per_byte = None if stage.learns_answers else gzip_bits_per_byte
    changing = {name: curve for name, curve in stage.curves.items() if len(set(curve.values)) > 1}
    # What a band shows is not drawn a second time.
    claimed = {error for name in changing if (error := error_of(name, stage.curves))}
    has_bands = bool(claimed)
    outside = {name: curve for name, curve in stage.curves.items() if name not in claimed}
    steady = {name: curve for name, curve in outside.items() if name not in changing}
    figures = []
    for group in GROUPS:
        members = [name for name in changing if re.fullmatch(group.pattern, name)]
        claimed.update(members)
        if members:
            figures.append(_draw_group(group, members, stage, gzip_bits_per_byte))
    others = [name for name in changing if name not in claimed]
    figures += [_draw_single(name, stage) for name in sorted(others)]
    longest = max((len(curve.values) for curve in changing.values()), default=0)
    notes = [BAND_NOTE] if has_bands else []
    notes += [SMOOTHING_NOTE] if longest >= SMOOTH_FROM else []
    parts = [
        element("div", *figures, class_="charts") if figures else None,
        element("p", " ".join(notes), class_="small-print") if notes else None,
        _list_steady(steady) if steady else None,
    ]
    return join(parts) if any(parts) else None


def _join_equal(members: Sequence[str], stage: StageRecord) -> list[list[str]]:
    """Return the metrics in groups of equal curves, errors included; one line stands for each."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in members:
        error = stage.curves.get(error_of(name, stage.curves) or "")
        course = [(c.steps, c.values) for c in (stage.curves[name], error) if c is not None]
        groups.setdefault((repr(course),), []).append(name)
    return list(groups.values())


def error_of(metric: str, curves: Mapping[str, Curve]) -> str | None:
    """Return the metric that holds the standard error of another one, if there is one."""
    name, found = re.subn(r"_(?:rate|mean)(?=_|$)", "_error", metric, count=1)
    return name if found and name in curves else None


def _errors(metric: str, stage: StageRecord) -> list[float] | None:
    """Return the standard error of each value of a curve, NaN where none was logged."""
    name = error_of(metric, stage.curves)
    if name is None:
        return None
    error = stage.curves[name]
    known = dict(zip(error.steps, error.values, strict=True))
    return [known.get(step, math.nan) for step in stage.curves[metric].steps]


def _draw_group(
    group: Group, members: Sequence[str], stage: StageRecord, gzip_bits_per_byte: float | None
) -> Markup:
    lines = []
    for index, equal in enumerate(_join_equal(sorted(members), stage)):
        names = [_short_name(group, metric) for metric in equal]
        metric = equal[0]
        curve = stage.curves[metric]
        is_noisy = group.is_noisy and not metric.startswith("validation/")
        error = _errors(metric, stage) if group.has_error else None
        colour = group.first_colour + index
        name = " = ".join(name or "all" for name in names)
        lines.append(Line(name, curve.x, curve.values, colour, False, is_noisy, error))
    if group.unit == "bits a byte" and gzip_bits_per_byte is not None:
        ends = [min(lines[0].x), max(lines[0].x)]
        lines.append(Line("gzip -9", ends, [gzip_bits_per_byte] * 2, 7, is_reference=True))
        members = [*members, GZIP_METRIC]
    if len(members) == 1:
        lines = [replace(lines[0], name="")]
    caption = _caption(members, stage)
    # A stage that learns answers is validated on answers.
    title = group.title.replace("text", "answers") if stage.learns_answers else group.title
    return draw_chart(Chart(title, stage.x_label, group.unit, lines, caption=caption))


def _short_name(group: Group, metric: str) -> str:
    match = re.fullmatch(group.pattern, metric)
    assert match is not None, "members were chosen by this pattern"
    name = match["name"].removesuffix("_grad_norm").replace("_", " ").strip()
    return f"depth {name}" if name.isdigit() else name


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
