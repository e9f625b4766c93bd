import random

import pytest

from fivefold.models.preset import preset
from fivefold.plan.communication import (
    context_bytes,
    expert_seconds,
    link_seconds,
    reduction_seconds,
    tensor_bytes,
)
from fivefold.plan.hardware import HARDWARE, find_hardware
from fivefold.plan.layout import Layout

_IDEAL = find_hardware("h100").model_copy(update={"link_efficiency": 1.0})


def test_context_latents_are_far_smaller_than_heads() -> None:
    # 7 x 704 x 2 bytes a local token over 8 ranks.
    assert context_bytes(preset("glm5"), 1, 8) == 7 * 704 * 2
    assert context_bytes(preset("glm45"), 1, 2) == 2 * 8 * 128 * 2


def test_tensor_traffic_vanishes_for_one_rank() -> None:
    assert tensor_bytes(preset("glm5"), 4096, 1) == 0
    assert tensor_bytes(preset("glm5"), 4096, 8) == 4 * 4096 * 6144 * 2 * 7 / 8


def test_link_leaves_the_node_when_the_group_does() -> None:
    assert link_seconds(450e9, 8, _IDEAL) == 1
    assert link_seconds(450e9, 16, _IDEAL) == 9


@pytest.mark.parametrize("expert", [1, 8, 32, 64])
def test_expert_exchange_equals_counted_destinations(expert: int) -> None:
    # Route tokens at random and count what leaves rank 0, one copy a remote node.
    config, generator = preset("glm5"), random.Random(5)
    ranks_a_node, chosen = 8, config.num_experts_per_tok
    nodes = max(1, expert // ranks_a_node)
    copies = 0
    tokens = 4000
    for _ in range(tokens):
        reached = {generator.randrange(nodes) for _ in range(chosen)}
        copies += len(reached - {0})
    row = config.hidden_size * 2
    inside = 0.0 if expert == 1 else tokens * chosen * row * 7 / 8 / 450e9
    expected = 2 * max(inside, copies * row / 50e9)

    assert expert_seconds(config, tokens, expert, _IDEAL) == pytest.approx(expected, rel=0.03)


def test_reduction_of_sharded_weights_gathers_every_pass() -> None:
    sizes = {"gradient_bytes": 4, "weight_bytes": 2}
    plain = Layout(gpus=16)
    sharded = Layout(gpus=16, sharding="weights")

    assert reduction_seconds(1e9, 1, plain, _IDEAL, **sizes) == 0
    once = reduction_seconds(1e9, 16, plain, _IDEAL, **sizes)
    thrice = reduction_seconds(1e9, 16, sharded, _IDEAL, passes=3, **sizes)
    assert once == pytest.approx(6e9 * 15 / 16 / 50e9)
    assert thrice == pytest.approx(3 * 8e9 * 15 / 16 / 50e9)


def test_hardware_rates_rise_with_rows_and_stay_below_the_peak() -> None:
    for hardware in HARDWARE.values():
        rates = [hardware.matmul_rate(rows) for rows in (64, 128, 4096)]

        assert rates == sorted(rates)
        assert rates[1] == pytest.approx(hardware.peak_flops * hardware.matmul_efficiency / 2)
        assert rates[2] < hardware.peak_flops
