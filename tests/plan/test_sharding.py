import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.plan.published import ZERO_ROWS, ZERO_SIZES
from fivefold.plan.sharding import stage_state_bytes, zero_bytes


@pytest.mark.parametrize("ranks", ZERO_ROWS)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("model", [0, 1, 2], ids=["7.5B", "128B", "1T"])
def test_zero_bytes_reproduce_table_1(ranks: int, stage: int, model: int) -> None:
    published = ZERO_ROWS[ranks][model][stage - 1]
    computed = zero_bytes(ZERO_SIZES[model], ranks, stage) / 1e9
    digits = len(f"{published}".partition(".")[2])
    unit = 10.0**-digits

    # The paper rounds some cells and truncates others.
    assert published - unit / 2 - 1e-9 <= computed < published + unit


def test_zero_bytes_headline() -> None:
    # "120 -> 31.4 -> 16.6 -> 1.9 GB for 7.5B parameters over 64 ranks".
    sizes = [zero_bytes(7.5e9, 64, stage) / 1e9 for stage in range(4)]

    assert [round(size, 1) for size in sizes] == [120, 31.4, 16.6, 1.9]


_BYTES = {"weight_bytes": 2.0, "gradient_bytes": 4.0, "optimizer_bytes": 12.0}


@given(chunks=st.integers(1, 8), ranks=st.integers(1, 64), size=st.floats(1, 1e9))
def test_rolling_buffers_save_only_with_enough_stages(chunks: int, ranks: int, size: float) -> None:
    # GLM-5's pipeline ZeRO-2 keeps v / D + 2 stages of gradients instead of v.
    stages = [size] * chunks
    rolling = stage_state_bytes(stages, ranks, "rolling", **_BYTES)
    whole = stage_state_bytes(stages, ranks, "optimizer", **_BYTES)

    saved = chunks - min(2, chunks) - chunks / ranks
    assert whole - rolling == pytest.approx(saved * size * 4, abs=1e-6 * size)


def test_sharded_weights_keep_one_gathered_stage() -> None:
    held = stage_state_bytes([100.0, 300.0], 4, "weights", **_BYTES)

    assert held == 400 * 18 / 4 + 300 * 2
