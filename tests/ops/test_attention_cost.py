"""The choice between gathering and masking at the ends where it is not in doubt."""

from fivefold.ops.attention_cost import gather_is_faster


def test_short_rows_are_masked_and_long_ones_gathered() -> None:
    assert not gather_is_faster(queries=512, keys=512, selected=128)
    assert gather_is_faster(queries=4096, keys=4096, selected=128)


def test_more_visible_keys_never_turn_gathering_off() -> None:
    choices = [gather_is_faster(length, length, 64) for length in range(64, 4096, 64)]
    assert choices == sorted(choices)
    assert not choices[0]
    assert choices[-1]


def test_selecting_everything_is_never_gathered() -> None:
    assert not any(gather_is_faster(n, n, n) for n in (16, 256, 4096))


def test_one_query_over_a_long_cache_gathers() -> None:
    assert gather_is_faster(queries=1, keys=32_768, selected=2048)
    assert not gather_is_faster(queries=1, keys=300, selected=128)
