"""Numbers for people: axis ticks, positions on an axis, and short spellings."""

import math
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Tick distances that a reader can add in their head, within one decade."""
MARGIN = 0.05
"""Free share of an axis beyond its smallest and largest value."""


@dataclass(frozen=True)
class Axis:
    """A range of values and how it is spread over an axis."""

    low: float
    high: float
    is_log: bool = False

    def fraction(self, value: float) -> float:
        """Return the position of a value, 0 at the low end and 1 at the high end."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """Return about `count` round values within the range, ascending."""
        if self.is_log and self.high / self.low >= 8:
            return _log_ticks(self.low, self.high, count)
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def fit_axis(values: list[float], *, is_log: bool = False) -> Axis:
    """Return an axis that holds finite values with a margin at both ends."""
    low, high = (min(values), max(values)) if values else (1.0, 2.0)
    if is_log:
        room = max(math.log10(high / low), 0.1) * MARGIN
        return Axis(low / 10**room, high * 10**room, is_log=True)
    room = (high - low) * MARGIN
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(high) * 0.1 or 1.0
    touches_zero = low >= 0 and low - room < 0
    return Axis(0.0 if touches_zero else low - room, high + room)


def format_number(value: float) -> str:
    """Spell a value in at most about six characters: 1.32M, 24.5k, 2.91, 3e-4."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= unit * 0.9995:
            scale = 1e3 if name == "k" else unit
            return f"{value / scale:.4g}"[:6].rstrip(".") + name
    if size == 0 or size >= 1e-3:
        return f"{value:,.0f}" if size >= 1e3 or value == round(value) else f"{value:.4g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_ticks(ticks: list[float]) -> list[str]:
    """Spell the ticks of one axis, with as many digits as tell them apart."""
    spelled = [format_number(tick) for tick in ticks]
    for digits in range(8, 18):
        if len(set(spelled)) == len(ticks):
            break
        spelled = [f"{tick:.{digits}g}" for tick in ticks]
    return spelled


def format_exact(value: float) -> str:
    """Spell a value for a table: whole numbers in full, others with six digits."""
    if math.isfinite(value) and value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.6g}"


def format_seconds(seconds: float) -> str:
    """Spell a duration: 0.4 s, 48 s, 5 min 30 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _round_step(raw: float) -> float:
    decade = 10.0 ** math.floor(math.log10(raw))
    return min((step * decade for step in STEPS), key=lambda step: abs(math.log(step / raw)))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = [10.0**e for e in exponents if low <= 10.0**e <= high]
    if len(within) < 3:
        ticks = [f * 10.0**e for e in exponents for f in (1, 2, 5)]
        return [tick for tick in ticks if low <= tick <= high]
    return within[:: max(1, math.ceil(len(within) / count))]
