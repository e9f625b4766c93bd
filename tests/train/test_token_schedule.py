"""Schedules against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.config import validate
from fivefold.errors import ConfigError
from fivefold.train.optimizer_config import ScheduleConfig
from fivefold.train.schedule import batch_rows, learning_rate, mtp_weight, router_bias_rate

TOTAL = 1_000_000
CONFIG = ScheduleConfig(total_tokens=TOTAL)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_learning_rate_warms_up_linearly(kind: str) -> None:
    config = CONFIG.model_copy(update={"kind": kind})
    assert learning_rate(0, config) == 0.0
    assert learning_rate(2_500, config) == pytest.approx(0.25 * 2e-4)
    assert learning_rate(10_000, config) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("kind", "quarter", "half", "end"),
    [
        ("cosine", 4e-5 + 1.6e-4 * (1 + math.sqrt(0.5)) / 2, 1.2e-4, 4e-5),
        ("linear", 1.6e-4, 1.2e-4, 4e-5),
        ("constant", 2e-4, 2e-4, 2e-4),
    ],
)
def test_learning_rate_follows_its_shape(
    kind: str, quarter: float, half: float, end: float
) -> None:
    config = CONFIG.model_copy(update={"kind": kind, "warmup_fraction": 0.0})
    assert learning_rate(0, config) == pytest.approx(2e-4)
    assert learning_rate(TOTAL // 4, config) == pytest.approx(quarter)
    assert learning_rate(TOTAL // 2, config) == pytest.approx(half)
    assert learning_rate(TOTAL, config) == pytest.approx(end)
    assert learning_rate(2 * TOTAL, config) == pytest.approx(end)


@given(tokens=st.integers(0, TOTAL - 1), kind=st.sampled_from(["cosine", "linear"]))
def test_learning_rate_is_continuous_and_falls_after_warmup(tokens: int, kind: str) -> None:
    config = CONFIG.model_copy(update={"kind": kind})
    here, after = learning_rate(tokens, config), learning_rate(tokens + 1, config)
    assert abs(after - here) <= 2e-4 / 10_000 * 1.001
    assert (after > here) if tokens < 10_000 else (after <= here)


def test_learning_rate_of_all_warmup_reaches_the_end() -> None:
    config = CONFIG.model_copy(update={"warmup_fraction": 1.0})
    assert learning_rate(TOTAL - 1, config) == pytest.approx(2e-4, rel=1e-5)
    assert learning_rate(TOTAL, config) == pytest.approx(4e-5)


@given(
    tokens=st.integers(0, TOTAL),
    start=st.integers(1, 64),
    microbatch_rows=st.sampled_from([1, 2, 8, 64]),
)
def test_batch_grows_in_multiples_of_the_microbatch(
    tokens: int, start: int, microbatch_rows: int
) -> None:
    config = CONFIG.model_copy(update={"batch_rows": 64, "batch_rows_start": start})
    rows = batch_rows(tokens, config, microbatch_rows)
    assert rows % microbatch_rows == 0
    assert microbatch_rows <= rows <= 64
    assert batch_rows(tokens + 1, config, microbatch_rows) >= rows
    exact = start + (64 - start) * min(tokens / 25_000, 1.0)
    assert abs(rows - exact) <= microbatch_rows
    if tokens >= 25_000:
        assert rows == 64


def test_batch_grows_linearly_in_tokens() -> None:
    assert [batch_rows(tokens, CONFIG, 4) for tokens in (0, 12_500, 24_999, 25_000)] == [
        8,
        20,
        28,
        32,
    ]
    steady = CONFIG.model_copy(update={"batch_warmup_fraction": 0.0})
    assert batch_rows(0, steady, 4) == 32


def test_batch_that_the_microbatch_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the 5 rows"):
        batch_rows(0, CONFIG, 5)


def test_start_batch_above_the_full_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_rows_start"):
        validate(
            ScheduleConfig,
            {"total_tokens": 10, "batch_rows": 4, "batch_rows_start": 8},
            where="schedule",
        )


def test_mtp_weight_and_bias_rate_change_at_their_fractions() -> None:
    assert [mtp_weight(tokens, CONFIG) for tokens in (0, 649_999, 650_000, TOTAL)] == [
        0.3,
        0.3,
        0.1,
        0.1,
    ]
    assert [router_bias_rate(tokens, CONFIG) for tokens in (0, 649_999, 650_000, TOTAL)] == [
        0.001,
        0.001,
        0.0,
        0.0,
    ]
