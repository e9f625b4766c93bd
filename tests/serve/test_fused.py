"""The engine's norm against the model's: zero rows, extreme rows, every pair of precisions."""

import itertools

import pytest
import torch

from fivefold.models.layer import RMSNorm
from fivefold.serve.fused import Norm

EPS = 1e-5
DTYPES = [torch.bfloat16, torch.float32, torch.float64]
MIXED = [pair for pair in itertools.product(DTYPES, DTYPES) if set(pair) != {torch.float32}]


def norm_of(dtype: torch.dtype, width: int = 48) -> RMSNorm:
    norm = RMSNorm(width, EPS)
    with torch.no_grad():
        torch.nn.init.normal_(norm.weight, 1, 0.3, generator=torch.Generator().manual_seed(0))
    return norm.to(dtype)


def rows(dtype: torch.dtype, width: int = 48) -> torch.Tensor:
    """Return rows of sizes around 1, of far smaller and far larger ones, and one of zeros."""
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(1))
    return (x * torch.tensor([1, 1, 1, 1e-4, 1e-8, 1e8, 0])[:, None]).to(dtype)


@torch.inference_mode()
def test_fp32_equals_the_models_norm_and_float64() -> None:
    norm, x = norm_of(torch.float32), rows(torch.float32)
    out = Norm(norm)(x)
    exact = RMSNorm(48, EPS)
    exact.weight.data = norm.weight.double()
    # A mean over 48 squares, a root and three products: a few roundings of 2^-24.
    for expected in (norm(x), exact(x.double()).float()):
        torch.testing.assert_close(out, expected, rtol=2e-6, atol=0)
    assert torch.equal(out[-1], torch.zeros(48))


@pytest.mark.parametrize(("x_dtype", "gain_dtype"), MIXED)
@torch.inference_mode()
def test_other_precisions_are_the_models_bit_for_bit(
    x_dtype: torch.dtype, gain_dtype: torch.dtype
) -> None:
    norm, x = norm_of(gain_dtype), rows(x_dtype)
    out = Norm(norm)(x)
    assert out.dtype == gain_dtype
    assert torch.equal(out, norm(x))
    assert torch.equal(out[-1], torch.zeros(48, dtype=gain_dtype))


def test_the_gain_is_shared_with_the_model() -> None:
    norm, x = norm_of(torch.float32), rows(torch.float32)
    with torch.no_grad():
        engine_norm = Norm(norm)
        norm.weight.mul_(2)
        torch.testing.assert_close(engine_norm(x), norm(x), rtol=2e-6, atol=0)
