"""Thinning keeps extremes, axes hold their values, spellings stay close to the number."""

import itertools
import math
import random
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fivefold.report.chart import (
    BINS,
    LABEL_PIXELS,
    Chart,
    Line,
    draw_chart,
    running_mean,
    thin_out,
)
from fivefold.report.scale import fit_axis, format_number, format_seconds, format_ticks

reasonable = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-6)


@settings(max_examples=40)
@given(seed=st.integers(0, 99), count=st.integers(1, 1500))
def test_thin_out_keeps_ends_and_extremes_in_order(seed: int, count: int):
    x = list(range(count))
    noise = random.Random(seed)
    y = [noise.gauss(0, 1) for _ in x]
    kept_x, kept_y = thin_out(x, y)
    assert len(kept_x) == len(kept_y) <= 2 * BINS + 2
    assert kept_x == sorted(set(kept_x))
    assert all(y[int(a)] == b for a, b in zip(kept_x, kept_y, strict=True))
    assert (kept_x[0], kept_x[-1]) == (0, count - 1)
    assert (min(kept_y), max(kept_y)) == (min(y), max(y))


@given(slope=st.integers(-9, 9), count=st.integers(1, 60), window=st.integers(1, 20))
def test_running_mean_of_a_straight_line_is_the_line(slope: int, count: int, window: int):
    line = [float(slope * index + 3) for index in range(count)]
    assert running_mean(line, window) == pytest.approx(line)


@given(values=st.lists(reasonable, min_size=1, max_size=9), is_log=st.booleans())
def test_axis_holds_its_values_and_ticks(values: list[float], is_log: bool):
    assume(not is_log or min(values) > 0)
    axis = fit_axis(values, is_log=is_log)
    assert all(-1e-9 <= axis.fraction(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks(4)
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= axis.fraction(tick) <= 1 + 1e-6 for tick in ticks)
    assert len(ticks) <= 16
    if not is_log:
        assert len(ticks) >= 2


def test_log_axis_over_decades_marks_powers_of_ten():
    assert fit_axis([1.0, 1000.0], is_log=True).ticks(4) == pytest.approx([1, 10, 100, 1000])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.9137, "2.914"),
        (3949.4, "3,949"),
        (24_500, "24.5k"),
        (999_960, "1M"),
        (1_331_200, "1.331M"),
        (7.44e11, "744B"),
        (0.0003, "3e-4"),
        (-0.00012345, "-1.23e-4"),
        (math.inf, "inf"),
    ],
)
def test_format_number_is_short(value: float, text: str):
    assert format_number(value) == text


@given(value=st.floats(1e-12, 1e14), sign=st.sampled_from((-1, 1)))
def test_format_number_is_within_half_a_percent(value: float, sign: int):
    text = format_number(sign * value).replace(",", "")
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1.0)
    number = float(text.rstrip("kMBT")) * factor
    assert number == pytest.approx(sign * value, rel=0.005)


def test_format_ticks_tells_close_ticks_apart():
    assert format_ticks([2.09121, 2.09122]) == ["2.09121", "2.09122"]
    assert format_ticks([0.0, 500_000.0]) == ["0", "500k"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (330, "5 min 30 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_format_seconds_is_spoken(seconds: float, text: str):
    assert format_seconds(seconds) == text


@given(ends=st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_labels_at_the_edge_never_overlap(ends: list[float]):
    lines = [Line(f"line {i}", [0, 1], [0.5, end], colour=i) for i, end in enumerate(ends)]
    drawn = draw_chart(Chart("ends", "x", "y", lines))
    tops = sorted(float(top) for top in re.findall(r'end-label" style="top:([-\d.]+)px', drawn))
    assert len(tops) == len(ends)
    assert all(b - a >= LABEL_PIXELS - 0.11 for a, b in itertools.pairwise(tops))
    assert tops[-1] <= 210


def test_chart_says_in_words_what_it_shows():
    drawn = draw_chart(Chart("Loss", "step", "nats", [Line("train", [1, 2], [7.5, 2.25], 0)]))
    assert 'role="img" aria-label="Loss, nats over step. train 7.5 to 2.25."' in drawn


def test_noisy_line_of_many_points_gets_a_running_mean():
    y = [float(index % 2) for index in range(200)]
    drawn = draw_chart(Chart("n", "x", "y", [Line("", range(200), y, 0, is_noisy=True)]))
    assert drawn.count("<path") == 2
    assert 'class="faint"' in drawn


def test_chart_without_finite_points_says_so():
    assert "No points." in draw_chart(Chart("n", "x", "y", [Line("a", [1.0], [math.nan], 0)]))


@pytest.mark.parametrize("step", [1e-3, 1e-7, 1e-9, 1e-13])
def test_ticks_close_to_one_are_told_apart(step: float) -> None:
    spelled = format_ticks([1 + place * step for place in range(-2, 3)])
    assert len(set(spelled)) == 5
    assert spelled[2] == "1"
