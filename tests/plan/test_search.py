import pytest
from rich.console import Console

from fivefold.config import validate
from fivefold.errors import ConfigError
from fivefold.models.preset import preset
from fivefold.plan.config import TrainingRun
from fivefold.plan.hardware import find_hardware
from fivefold.plan.layout import Layout
from fivefold.plan.layout_table import render_layouts
from fivefold.plan.search import evaluate_layout, search_layouts

_RUN = TrainingRun(total_tokens=10**12, batch_tokens=4 * 2**20)
_H100 = find_hardware("h100")


def test_search_small_model_plans_fit_and_are_sorted() -> None:
    plans = search_layouts(preset("small"), 8, _H100, _RUN)

    assert len(plans) > 3
    assert [plan.step_seconds for plan in plans] == sorted(plan.step_seconds for plan in plans)
    assert len({plan.layout.axes for plan in plans}) == len(plans)
    for plan in plans:
        assert plan.memory_bytes <= _H100.memory_bytes - _H100.reserved_bytes
        assert 0 <= plan.bubble_rate < 1
        assert 0 < plan.mfu < _H100.matmul_efficiency
        assert plan.tokens_a_second * plan.step_seconds == pytest.approx(4 * 2**20)


def test_search_less_memory_never_finds_a_faster_layout() -> None:
    cramped = _H100.model_copy(update={"memory_bytes": 20 * 2**30})
    roomy = search_layouts(preset("small"), 8, _H100, _RUN)[0]
    tight = search_layouts(preset("small"), 8, cramped, _RUN)[0]

    assert tight.step_seconds >= roomy.step_seconds
    assert tight.memory_bytes < 14 * 2**30


def test_search_glm5_does_not_fit_eight_gpus() -> None:
    with pytest.raises(ConfigError, match="fits 8 h100"):
        search_layouts(preset("glm5"), 8, _H100)


def test_search_refuses_a_run_without_batch_and_the_warmup() -> None:
    for run in (
        _RUN.model_copy(update={"batch_tokens": None}),
        TrainingRun(total_tokens=1, stage="warmup", batch_tokens=1),
    ):
        with pytest.raises(ConfigError, match="batch_tokens"):
            search_layouts(preset("small"), 8, _H100, run)


@pytest.mark.parametrize(
    ("schedule", "chunks"),
    [("1f1b", 1), ("interleaved", 3), ("zb_h1", 1), ("zb_v", 2), ("v_half", 2)],
)
def test_evaluate_long_batches_extrapolate_the_exact_schedule(
    schedule: str, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(gpus=64, pipeline=4, tensor=2, expert=8, schedule=schedule, chunks=chunks)
    run = _RUN.model_copy(update={"batch_tokens": 8 * 90 * 4096})
    config = preset("glm47_flash")
    guessed = evaluate_layout(config, layout, _H100, run)
    monkeypatch.setattr("fivefold.plan.evaluate._EXACT_ACTIONS", 10**6)
    exact = evaluate_layout(config, layout, _H100, run)

    assert guessed.microbatches == 90
    assert guessed.pipeline_seconds == pytest.approx(exact.pipeline_seconds, rel=5e-3)
    assert guessed.activation_bytes == pytest.approx(exact.activation_bytes)


def test_evaluate_rolling_buffers_trade_memory_for_traffic() -> None:
    layout = Layout(
        gpus=64, pipeline=4, expert=8, schedule="interleaved", chunks=6, recompute="full"
    )
    rolling = layout.model_copy(update={"sharding": "rolling"})
    plain, rolled = (
        evaluate_layout(preset("glm47_flash"), each, _H100, _RUN) for each in (layout, rolling)
    )

    assert rolled.state_bytes < plain.state_bytes
    assert rolled.reduction_seconds > 5 * plain.reduction_seconds


def test_layout_refuses_axes_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="divide"):
        validate(Layout, {"gpus": 12, "pipeline": 8}, where="layout")
    with pytest.raises(ConfigError, match="expert"):
        validate(Layout, {"gpus": 16, "pipeline": 4, "expert": 8}, where="layout")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"schedule": "zb_w"}, "schedule among"),
        ({"schedule": "zb_v"}, "`chunks` of 2"),
        ({"schedule": "1f1b", "chunks": 2}, "`chunks` of 1"),
        ({"schedule": "zb_h1", "recompute": "full"}, "split backward"),
    ],
)
def test_layout_refuses_policies_that_exclude_each_other(fields: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        validate(Layout, {"gpus": 8, "pipeline": 4, **fields}, where="layout")


def test_evaluate_refuses_more_stages_than_pieces() -> None:
    layout = Layout(gpus=64, pipeline=64)
    with pytest.raises(ConfigError, match="at most 19 stages"):
        evaluate_layout(preset("small"), layout, _H100, _RUN)


def test_render_layouts_fits_100_columns() -> None:
    run = _RUN.model_copy(update={"total_tokens": 28_500_000_000_000})
    plans = [
        evaluate_layout(preset("glm5"), layout, _H100, run)
        for layout in (
            Layout(
                gpus=1024,
                pipeline=16,
                context=2,
                tensor=2,
                expert=32,
                schedule="interleaved",
                chunks=4,
            ),
            Layout(gpus=1024, pipeline=8, tensor=4, expert=128, recompute="feed_forward"),
            Layout(gpus=1024, pipeline=4, expert=256, schedule="zb_h2"),
        )
    ]
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(render_layouts(plans, _H100, run, name="glm47_flash"))
    lines = [line.rstrip() for line in capture.get().splitlines()]

    assert max(map(len, lines)) <= 100
    assert "…" not in capture.get()
    assert any("pp16 dp16 cp2 tp2 ep32" in line and "x4 1f1b" in line for line in lines)
    assert "not a measurement" in capture.get()
