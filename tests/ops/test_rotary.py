"""Rotary embedding: relative by construction, one rotation in two layouts, YaRN as published."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fivefold.ops.rotary import (
    inverse_frequencies,
    rotary_angles,
    rotate_halves,
    rotate_pairs,
    yarn_scale,
)

ROTATIONS = pytest.mark.parametrize("rotate", [rotate_pairs, rotate_halves])
DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact_turn(positions: Tensor, channels: int) -> Tensor:
    """Return rotations as complex128, so that properties hold to fp64 rounding."""
    speeds, _ = inverse_frequencies(DEFAULT, channels)
    angles = positions[..., None].double() * speeds.double()
    return torch.polar(torch.ones_like(angles), angles)


@ROTATIONS
def test_dot_product_depends_on_the_distance_alone(rotate) -> None:
    q, k = gaussian(1, 1, 2, 16), gaussian(1, 1, 2, 16, seed=1)

    def score(query: int, key: int) -> Tensor:
        turned = [
            rotate(x, exact_turn(torch.tensor([[position]]), 16))
            for x, position in ((q, query), (k, key))
        ]
        return (turned[0] * turned[1]).sum(-1)

    for distance in (0, 1, 37):
        near, far = score(distance, 0), score(5000 + distance, 5000)
        torch.testing.assert_close(near, far, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(score(1, 0), score(2, 0), rtol=1e-3)


@ROTATIONS
def test_rotation_keeps_lengths_and_leaves_position_zero(rotate) -> None:
    x = gaussian(2, 5, 3, 16)
    turn = exact_turn(torch.arange(5).expand(2, 5), 16)
    turned = rotate(x, turn)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)
    assert torch.equal(turned[:, 0], x[:, 0])
    assert turned.shape == x.shape


@ROTATIONS
def test_rotation_keeps_dtype_and_computes_in_fp32(rotate) -> None:
    x = gaussian(1, 4, 2, 8).bfloat16()
    turn = rotary_angles(torch.arange(4)[None] + 1000, inverse_frequencies(DEFAULT, 8)[0])
    turned = rotate(x, turn)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), turn).bfloat16())


@ROTATIONS
def test_rotation_passes_the_gradient_check(rotate) -> None:
    x = gaussian(1, 3, 2, 4).requires_grad_()
    turn = exact_turn(torch.tensor([[0, 3, 1000]]), 4)
    assert torch.autograd.gradcheck(lambda x: rotate(x, turn), (x,))


def test_pairs_and_halves_are_one_rotation_in_two_layouts() -> None:
    x = gaussian(2, 6, 3, 16)
    turn = exact_turn(torch.arange(6).expand(2, 6) * 100, 16)
    to_halves = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])
    halves = rotate_halves(x[..., to_halves], turn)
    torch.testing.assert_close(rotate_pairs(x, turn)[..., to_halves], halves, rtol=0, atol=1e-15)
    assert not torch.allclose(rotate_pairs(x, turn), rotate_halves(x, turn))


def test_one_pair_turns_counter_clockwise() -> None:
    turn = rotary_angles(torch.tensor([[1]]), torch.tensor([math.pi / 2]), 2.0)
    turned = rotate_pairs(torch.tensor([[[[1.0, 0.0]]]]), turn)
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 2.0]))


def test_angles_are_fp32_even_at_long_positions() -> None:
    speeds, factor = inverse_frequencies({"rope_theta": 1e6}, 64)
    turn = rotary_angles(torch.tensor([[200_000]]), speeds, factor)
    assert turn.dtype == torch.complex64
    exact = torch.polar(torch.ones(32).double(), 200_000 * speeds.double())
    # The product of position and speed is rounded once: 2e5 x 2^-24 radians at the fastest pair.
    assert (turn[0, 0].to(torch.complex128) - exact).abs().max() < 200_000 * 2.0**-24


def test_default_speeds_are_the_powers_of_the_base() -> None:
    speeds, factor = inverse_frequencies(DEFAULT, 8)
    torch.testing.assert_close(speeds, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    assert factor == 1.0


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    plain, _ = inverse_frequencies(DEFAULT, 64)
    stretched, factor = inverse_frequencies(YARN, 64)
    turns = 4096 * plain / (2 * math.pi)
    # The ramp's ends are rounded outwards to whole pairs: one pair of slack on each side.
    step = plain[0] / plain[1]
    fast, slow = turns > 32 * step, turns < 1 / step
    assert fast.any()
    assert slow.any()
    torch.testing.assert_close(stretched[fast], plain[fast])
    torch.testing.assert_close(stretched[slow], plain[slow] / 40)
    between = ~(fast | slow)
    assert (stretched[between] <= plain[between]).all()
    assert (stretched[between] >= plain[between] / 40).all()
    assert factor == pytest.approx(0.1 * math.log(40) + 1)


def test_yarn_scale_is_one_without_stretch() -> None:
    assert yarn_scale(1.0) == yarn_scale(0.5) == 1.0
    assert yarn_scale(math.e, 2.0) == pytest.approx(1.2)


@pytest.mark.numerics
@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.707, "mscale_all_dim": 1.0},
        {"mscale": 1.0},
        {"attention_factor": 1.5},
        {"beta_fast": 4.0, "beta_slow": 2.0},
        {"factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_theta": 1e6, "original_max_position_embeddings": 32_768},
        {"factor": 1.0},
        {"original_max_position_embeddings": 8},
    ],
    ids=str,
)
def test_yarn_equals_transformers(channels: int, changes: dict[str, float]) -> None:
    from transformers import DeepseekV3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**YARN, **changes}
    theirs = DeepseekV3Config(rope_parameters=parameters)
    theirs.head_dim = channels
    expected, expected_factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    speeds, factor = inverse_frequencies(parameters, channels)
    torch.testing.assert_close(speeds, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)
