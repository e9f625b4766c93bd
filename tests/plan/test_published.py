import pytest

from fivefold.models.preset import preset
from fivefold.plan.automatic import POLICIES, search_policies
from fivefold.plan.dense_gpt import gpt_parameters, gpt_step_flops, gpt_training_seconds
from fivefold.plan.list_schedule import Policy
from fivefold.plan.make_schedule import make_schedule
from fivefold.plan.parameters import count_parameters
from fivefold.plan.published import (
    A100_PEAK,
    BUBBLE_ROWS,
    GLM5_PARAMETERS,
    GPT_CONTEXT,
    GPT_ROWS,
    GPT_VOCABULARY,
    WEIGHT_MEMORY_SHARE,
    BubbleRow,
    GptRow,
)
from fivefold.plan.schedule import loop_placement
from fivefold.plan.simulate import StageCosts, even_costs, simulate

_BUBBLE_IDS = [f"{row.model}-m{row.microbatches}" for row in BUBBLE_ROWS]


def _costs(row: BubbleRow, weight_memory: float = 1.0) -> StageCosts:
    times = row.forward, row.input_gradient, row.weight_gradient, row.edge
    return even_costs(row.ranks, *times, weight_memory=weight_memory)


@pytest.mark.parametrize("name", ["1f1b", "zb_h1", "zb_h2"])
@pytest.mark.parametrize("row", BUBBLE_ROWS, ids=_BUBBLE_IDS)
def test_bubble_rate_equals_the_zero_bubble_paper(row: BubbleRow, name: str) -> None:
    published = {"1f1b": row.one_f_one_b, "zb_h1": row.zb_h1, "zb_h2": row.zb_h2}[name]
    timeline = simulate(make_schedule(name, row.ranks, row.microbatches), _costs(row))

    assert round(timeline.bubble_rate, 4) == published


@pytest.mark.parametrize("row", BUBBLE_ROWS[:9], ids=_BUBBLE_IDS[:9])
def test_automatic_equals_zb_1p_within_the_memory_of_1f1b(row: BubbleRow) -> None:
    costs, cap = _costs(row), (float(row.ranks),) * row.ranks
    policies = [Policy(0.0, 1.0), Policy(0.0, 1.5)]
    schedule = search_policies(loop_placement(row.ranks), row.microbatches, costs, cap, policies)
    timeline = simulate(schedule, costs)

    assert round(timeline.bubble_rate, 4) == row.zb_1p
    assert max(timeline.peak_memory) <= row.ranks


@pytest.mark.parametrize("row", BUBBLE_ROWS[:9], ids=_BUBBLE_IDS[:9])
def test_automatic_is_as_good_as_zb_2p_within_twice_the_memory(row: BubbleRow) -> None:
    costs = _costs(row, WEIGHT_MEMORY_SHARE[row.model])
    policies = POLICIES if row.ranks == 8 else [Policy(1.0, 2.0)]
    cap = (2.0 * row.ranks,) * row.ranks
    schedule = search_policies(loop_placement(row.ranks), row.microbatches, costs, cap, policies)
    timeline = simulate(schedule, costs)

    assert timeline.bubble_rate <= row.zb_2p + 5e-4
    assert max(timeline.peak_memory) <= 2 * row.ranks


@pytest.mark.parametrize("row", BUBBLE_ROWS[:9:3], ids=_BUBBLE_IDS[:9:3])
def test_zb_v_bubble_is_below_zb_h2_within_the_memory_of_1f1b(row: BubbleRow) -> None:
    times = row.forward / 2, row.input_gradient / 2, row.weight_gradient / 2, row.edge
    costs = even_costs(2 * row.ranks, *times, memory=0.5, weight_memory=0.5)
    timeline = simulate(make_schedule("zb_v", row.ranks, row.microbatches, costs=costs), costs)

    assert timeline.bubble_rate < row.zb_h2
    assert max(timeline.peak_memory) == row.ranks


@pytest.mark.parametrize("row", GPT_ROWS, ids=[f"{row.billions}B" for row in GPT_ROWS])
def test_megatron_table_1_sizes_and_rates(row: GptRow) -> None:
    parameters = gpt_parameters(row.layers, row.hidden, GPT_VOCABULARY, GPT_CONTEXT)

    assert round(parameters / 1e9, 1) == row.billions
    # Both printed rates are rounded: half a TFLOP/s a GPU, half a tenth of a PFLOP/s in total.
    rounding = 0.5 * row.gpus / 1e3 + 0.05
    assert row.petaflops == pytest.approx(row.tflops_a_gpu * row.gpus / 1e3, abs=rounding)
    assert row.tflops_a_gpu * 1e14 / A100_PEAK == pytest.approx(row.percent_of_peak, abs=0.55)


def test_megatron_training_days() -> None:
    # Section 5.1: GPT-3 in 34 days on 1024 A100 at 140 TFLOP/s, 1T in 84 days on 3072 at 163.
    day = 86_400

    assert round(gpt_training_seconds(174.6e9, 300e9, 1024, 140e12) / day) == 34
    assert round(gpt_training_seconds(1008e9, 450e9, 3072, 163e12) / day) == 84


def test_megatron_flops_are_eight_a_parameter_and_token() -> None:
    row = GPT_ROWS[-1]
    parameters = gpt_parameters(row.layers, row.hidden, GPT_VOCABULARY, GPT_CONTEXT)
    shape = row.layers, row.hidden, GPT_VOCABULARY, GPT_CONTEXT
    flops = gpt_step_flops(*shape, row.batch_rows) / (row.batch_rows * GPT_CONTEXT)

    assert flops / parameters == pytest.approx(8, rel=0.02)


def test_glm5_parameters_equal_the_checkpoint() -> None:
    assert count_parameters(preset("glm5")).total == GLM5_PARAMETERS
