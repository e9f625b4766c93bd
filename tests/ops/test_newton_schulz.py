"""Newton-Schulz against the exact polar factor and against the polynomials' closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.ops.newton_schulz import COEFFICIENTS, SMALLEST_NORM, orthogonalise, reference

NAMES = sorted(COEFFICIENTS)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apply_polynomials(name: str, values: torch.Tensor) -> torch.Tensor:
    for a, b, c in COEFFICIENTS[name]:
        values = a * values + b * values**3 + c * values**5
    return values


def test_reference_has_unit_singular_values_and_positive_alignment() -> None:
    blocks = gaussian(3, 8, 12)
    factor = reference(blocks)
    assert torch.allclose(factor @ factor.mT, torch.eye(8).expand(3, 8, 8), atol=1e-5)
    stretch = factor.mT @ blocks
    assert torch.allclose(stretch, stretch.mT, atol=1e-4)
    assert torch.linalg.eigvalsh(stretch).min() > -1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 12, 20), (2, 20, 12), (1, 16, 16), (3, 1, 7)])
def test_orthogonalise_maps_each_singular_value_through_the_polynomials(
    name: str, shape: tuple[int, int, int]
) -> None:
    blocks = gaussian(*shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    mapped = apply_polynomials(name, values / values.norm(dim=-1, keepdim=True))
    expected = left @ torch.diag_embed(mapped) @ right
    result = orthogonalise(blocks, COEFFICIENTS[name], torch.float64)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("polar_express", 0.83, 1.13), ("glm45", 0.67, 1.21)]
)
def test_coefficients_bring_all_but_tiny_singular_values_near_one(
    name: str, lowest: float, highest: float
) -> None:
    mapped = apply_polynomials(name, torch.linspace(0.01, 1.0, 20_001, dtype=torch.float64))
    assert lowest < mapped.min()
    assert mapped.max() < highest


def test_polar_express_polynomials_equioscillate_around_one() -> None:
    # Each minimises the largest |p(s) - 1| on what the ones before make of [0.001, 1], so its
    # extremes lie as far above one as below. The stored ones take an argument 1.05 times as large.
    values = torch.logspace(-3, 0, 20_001, dtype=torch.float64)
    for a, b, c in COEFFICIENTS["polar_express"]:
        scaled = 1.05 * values
        values = a * scaled + b * scaled**3 + c * scaled**5
        assert abs(values.min() + values.max() - 2.0) < 1e-6


@pytest.mark.numerics
@pytest.mark.parametrize(("name", "error"), [("polar_express", 0.10), ("glm45", 0.18)])
@pytest.mark.parametrize("shape", [(1, 256, 512), (1, 512, 256)])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 0.0), (torch.bfloat16, 0.013)])
def test_orthogonalise_is_near_the_polar_factor(
    name: str, error: float, shape: tuple[int, int, int], dtype: torch.dtype, rounding: float
) -> None:
    blocks = gaussian(*shape)
    exact = reference(blocks)
    result = orthogonalise(blocks, COEFFICIENTS[name], dtype)
    assert result.dtype == torch.float32
    assert (result - exact).norm() / exact.norm() < error + rounding


@settings(max_examples=25)
@given(exponent=st.integers(-10, 10), name=st.sampled_from(NAMES))
def test_orthogonalise_ignores_a_power_of_two(exponent: int, name: str) -> None:
    blocks = gaussian(2, 6, 10)
    scaled = orthogonalise(blocks * 2.0**exponent, COEFFICIENTS[name], torch.bfloat16)
    assert torch.equal(scaled, orthogonalise(blocks, COEFFICIENTS[name], torch.bfloat16))


def test_orthogonalise_of_transposed_blocks_is_the_transpose() -> None:
    blocks = gaussian(2, 6, 10)
    coefficients = COEFFICIENTS["polar_express"]
    result = orthogonalise(blocks.mT, coefficients, torch.float32)
    expected = orthogonalise(blocks, coefficients, torch.float32).mT
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_orthogonalise_treats_each_block_alone() -> None:
    blocks = gaussian(4, 6, 10) * torch.tensor([1e-3, 1.0, 50.0, 1e4])[:, None, None]
    coefficients = COEFFICIENTS["polar_express"]
    whole = orthogonalise(blocks, coefficients, torch.float32)
    alone = torch.cat([orthogonalise(block[None], coefficients, torch.float32) for block in blocks])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_of_a_zero_block_is_zero_beside_others(dtype: torch.dtype) -> None:
    blocks = gaussian(3, 6, 10)
    blocks[1] = 0.0
    before = blocks.clone()
    result = orthogonalise(blocks, COEFFICIENTS["polar_express"], dtype)
    assert torch.equal(result[1], torch.zeros(6, 10))
    assert torch.isfinite(result).all()
    assert (result[[0, 2]].norm(dim=(-2, -1)) > 2.0).all()
    assert torch.equal(blocks, before)


def test_orthogonalise_does_not_blow_up_a_vanishing_block() -> None:
    blocks = gaussian(1, 6, 10)
    blocks *= SMALLEST_NORM * 1e-6 / blocks.norm()
    result = orthogonalise(blocks, COEFFICIENTS["polar_express"], torch.float32)
    assert result.norm() < 1e-2
