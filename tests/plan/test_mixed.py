"""Layouts whose layers are treated one by one: they fit, and cost no more than uniform ones."""

import pytest
from rich.console import Console

from fivefold.config import validate
from fivefold.errors import ConfigError
from fivefold.models.preset import preset
from fivefold.plan.activation_choice import KEEP, ActivationBoundError, Treatment
from fivefold.plan.chain import model_pieces
from fivefold.plan.config import Precision, TrainingRun
from fivefold.plan.evaluate import LayoutPlan
from fivefold.plan.hardware import Hardware, find_hardware
from fivefold.plan.layout import Layout
from fivefold.plan.layout_table import render_layouts
from fivefold.plan.mixed import plan_mixed
from fivefold.plan.rank_load import Problem
from fivefold.plan.search import evaluate_layout, search_layouts
from fivefold.plan.stage_split import split_evenly

_RUN = TrainingRun(total_tokens=10**12, batch_tokens=64 * 16_384, context_tokens=16_384)
_H100 = find_hardware("h100")
_MOVE = Treatment(recompute=False, move=True)


def mixed(layout: Layout, hardware: Hardware = _H100) -> LayoutPlan:
    problem = Problem(preset("glm47_flash"), _RUN, hardware, Precision())
    chain = model_pieces(problem.config, _RUN, layout, hardware, problem.precision)
    stages = layout.pipeline * layout.chunks
    runs = split_evenly([piece.seconds for piece in chain], stages)
    return plan_mixed(problem, layout, [chain[run.start : run.stop] for run in runs])


def uniform(layout: Layout, **changes: object) -> LayoutPlan:
    layout = layout.model_copy(update=changes)
    return evaluate_layout(preset("glm47_flash"), layout, _H100, _RUN)


def test_mixed_layers_fit_where_kept_ones_do_not_and_take_less_time_than_recomputed_ones() -> None:
    layout = Layout(gpus=32, pipeline=4, expert=8)
    kept, again, plan = uniform(layout), uniform(layout, recompute="full"), mixed(layout)
    room = _H100.memory_bytes - _H100.reserved_bytes
    assert plan.memory_bytes <= room < kept.memory_bytes
    assert kept.pipeline_seconds <= plan.pipeline_seconds < again.pipeline_seconds
    assert len(plan.choices) == 4
    # Ranks with fewer microbatches in flight are left alone earlier.
    touched = [sum(each != KEEP for each in choice.treatments) for choice in plan.choices]
    assert touched[0] == max(touched) > touched[-1]


def test_enough_memory_is_the_plan_without_a_choice() -> None:
    layout = Layout(gpus=32, pipeline=4, expert=8)
    roomy = _H100.model_copy(update={"memory_bytes": 2e12})
    plan, kept = mixed(layout, roomy), uniform(layout)
    assert plan.pipeline_seconds == pytest.approx(kept.pipeline_seconds)
    assert plan.activation_bytes == pytest.approx(kept.activation_bytes)
    assert {each for choice in plan.choices for each in choice.treatments} == {KEEP}


def test_a_faster_link_costs_less_and_moves_more() -> None:
    layout = Layout(gpus=32, pipeline=4, expert=8)
    slow, fast = (
        mixed(layout, _H100.model_copy(update={"host_bandwidth": rate})) for rate in (1e9, 1e12)
    )
    assert fast.pipeline_seconds < slow.pipeline_seconds
    assert any(_MOVE in choice.treatments for choice in fast.choices)
    assert not any(_MOVE in choice.treatments for choice in slow.choices)
    assert fast.host_bytes > slow.host_bytes


def test_no_room_is_an_error_with_a_name() -> None:
    tight = _H100.model_copy(update={"memory_bytes": 24 * 2**30})
    with pytest.raises(ActivationBoundError, match="bytes of activations"):
        mixed(Layout(gpus=32, pipeline=4, expert=8), tight)


def test_search_finds_layouts_that_fit_no_other_way_and_says_what_becomes_of_layers() -> None:
    run = _RUN.model_copy(update={"context_tokens": 131_072, "batch_tokens": 16 * 131_072})
    plans = search_layouts(preset("glm47_flash"), 16, _H100, run)
    assert any(plan.choices for plan in plans)
    for plan in plans:
        assert plan.memory_bytes <= _H100.memory_bytes - _H100.reserved_bytes
        assert plan.host_bytes <= _H100.host_bytes
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(render_layouts(plans, _H100, run))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("mixed layout") for line in lines)
    assert "moved" in capture.get()


def test_search_of_a_model_that_fits_leaves_its_layers_alone() -> None:
    plans = search_layouts(preset("small"), 8, _H100, _RUN)
    assert plans[0].choices == ()


@pytest.mark.parametrize("fields", [{"schedule": "zb_h1"}, {"recompute": "full"}])
def test_layout_refuses_a_mix_with_what_it_excludes(fields: dict) -> None:
    with pytest.raises(ConfigError, match="is_mixed"):
        validate(Layout, {"gpus": 8, "pipeline": 4, "is_mixed": True, **fields}, where="layout")
