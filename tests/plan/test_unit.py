import pytest

from fivefold.plan.unit import (
    format_bytes,
    format_count,
    format_duration,
    format_flops,
    format_share,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(753_864_139_008), "754B"),
        (format_count(999_499_999), "999M"),
        (format_count(999_500_000), "1.00B"),
        (format_count(40_833_146_112), "40.8B"),
        (format_count(7), "7"),
        (format_count(99_960), "100K"),
        (format_flops(8.57e24), "8.57 YFLOP"),
        (format_bytes(1024), "1.00 KiB"),
        (format_bytes(0), "0 B"),
        (format_share(0.0523), "5.2%"),
        (format_duration(0.0211), "21.1 ms"),
        (format_duration(59.99), "59.99 s"),
        (format_duration(5400), "1.5 hours"),
        (format_duration(86_400 * 34), "34.0 days"),
    ],
)
def test_format_keeps_three_digits(text: str, expected: str) -> None:
    assert text == expected
