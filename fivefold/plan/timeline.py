"""A schedule's timeline as SVG: one row a rank, one box an action, what stays white is bubble.

Colours tell forward, input gradient, weight gradient and fused backward; the later half of a
rank's chunks is darker. At the right stand each rank's busy share and the most it holds.
"""

from xml.sax.saxutils import escape, quoteattr

from fivefold.plan.schedule import Action, Kind
from fivefold.plan.simulate import Timeline

_ROW = 26
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 110, 58, 34
_NAMES: dict[Kind, str] = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "W": "weight gradient",
}
_COLOURS: dict[Kind, tuple[str, str]] = {
    "F": ("#a9c8f5", "#6f9fe0"),
    "B": ("#f6c48a", "#e29b47"),
    "I": ("#a8dfc9", "#62b997"),
    "W": ("#d9cdf0", "#b29fdc"),
}


def draw_timeline(timeline: Timeline, *, title: str | None = None, width: int = 1280) -> str:
    """Return an SVG document of the timeline, `width` pixels wide.

    Held memory is in the unit of the costs that made the timeline.
    """
    ranks = timeline.schedule.ranks
    height = _TOP + ranks * _ROW + _BOTTOM
    scale = (width - _LEFT - _RIGHT) / timeline.makespan
    heading = title or (
        f"{timeline.schedule.name}, {ranks} ranks, {timeline.schedule.microbatches} microbatches"
    )
    summary = f"bubble {timeline.bubble_rate:.1%}, makespan {timeline.makespan:.4g}"
    parts = [
        _tag("rect", width=width, height=height, fill="#ffffff"),
        _tag("title", heading),
        _tag("text", heading, x=_LEFT, y=20, font_size=15, font_weight=600),
        _tag("text", summary, x=_LEFT, y=38, fill="#555"),
        *_legend(timeline, width),
        *[part for rank in range(ranks) for part in _row(timeline, rank, scale, width)],
        *_axis(timeline, scale, height),
    ]
    body = "\n" + "\n".join(parts) + "\n"
    return _element(
        "svg",
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        font_family="system-ui, sans-serif",
        font_size=11,
    )


def _tag(name: str, text: str = "", **attributes: object) -> str:
    """Return one SVG element that holds plain text."""
    return _element(name, escape(text), **attributes)


def _element(name: str, body: str, **attributes: object) -> str:
    """Return one SVG element; `_` in an attribute's name stands for `-`."""
    written = ""
    for key, value in attributes.items():
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        written += f" {key.replace('_', '-')}={quoteattr(text)}"
    return f"<{name}{written}>{body}</{name}>" if body else f"<{name}{written}/>"


def _legend(timeline: Timeline, width: int) -> list[str]:
    used = {action.kind for row in timeline.schedule.actions for action in row}
    kinds: list[Kind] = [kind for kind in _NAMES if kind in used]
    start = width - _RIGHT - 125 * len(kinds)
    parts = []
    for index, kind in enumerate(kinds):
        x = start + 125 * index
        parts.append(_tag("rect", x=x, y=28, width=12, height=12, fill=_COLOURS[kind][0]))
        parts.append(_tag("text", _NAMES[kind], x=x + 17, y=38))
    parts.append(_tag("text", "busy", x=width - _RIGHT + 10, y=48, fill="#555"))
    parts.append(_tag("text", "holds", x=width - 12, y=48, fill="#555", text_anchor="end"))
    return parts


def _row(timeline: Timeline, rank: int, scale: float, width: int) -> list[str]:
    top = _TOP + rank * _ROW
    middle = top + _ROW // 2 + 4
    right = width - _RIGHT
    busy = f"{timeline.work[rank] / timeline.makespan:.0%}"
    held = f"{timeline.peak_memory[rank]:.4g}"
    stages = sorted({action.stage for action in timeline.schedule.actions[rank]})
    parts = [
        _tag("rect", x=_LEFT, y=top + 1, width=right - _LEFT, height=_ROW - 2, fill="#f4f4f2"),
        _tag("text", f"rank {rank}", x=_LEFT - 8, y=middle, text_anchor="end"),
        _tag("text", busy, x=right + 10, y=middle),
        _tag("text", held, x=width - 12, y=middle, text_anchor="end"),
    ]
    for action, start, end in timeline.spans[rank]:
        if end > start:
            dark = stages.index(action.stage) / max(1, len(stages) - 1) > 0.5
            parts += _box(action, _LEFT + start * scale, (end - start) * scale, top, dark=dark)
    return parts


def _box(action: Action, x: float, width: float, top: int, *, dark: bool) -> list[str]:
    described = f"{_NAMES[action.kind]}, stage {action.stage}, microbatch {action.microbatch}"
    parts = [
        _element(
            "rect",
            _tag("title", described),
            x=x,
            y=top + 2,
            width=max(width - 0.6, 0.4),
            height=_ROW - 4,
            fill=_COLOURS[action.kind][dark],
        )
    ]
    label = str(action.microbatch)
    if width >= 2 + 5 * len(label):
        middle = x + width / 2
        parts.append(
            _tag("text", label, x=middle, y=top + _ROW // 2 + 4, font_size=9, text_anchor="middle")
        )
    return parts


def _axis(timeline: Timeline, scale: float, height: int) -> list[str]:
    """Draw about eight ticks at round times."""
    rough = timeline.makespan / 8
    power = 10.0 ** _exponent(rough)
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    base = height - _BOTTOM + 4
    parts = []
    for index in range(int(timeline.makespan / step * (1 + 1e-9)) + 1):
        x = _LEFT + index * step * scale
        time = f"{index * step:.6g}"
        parts.append(_tag("line", x1=x, y1=base, x2=x, y2=base + 5, stroke="#888"))
        parts.append(_tag("text", time, x=x, y=base + 18, fill="#555", text_anchor="middle"))
    return parts


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])
