"""The norm's hand-written backward against autograd of its reference, and the norm's own laws."""

import pytest
import torch
from torch import Tensor

from fivefold.ops.rms_norm import reference, rms_norm

EPS = 1e-5


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def forward_and_gradients(norm, x: Tensor, gain: Tensor, pull: Tensor) -> list[Tensor]:
    x, gain = x.clone().requires_grad_(), gain.clone().requires_grad_()
    out = norm(x, gain, EPS)
    return [out.detach(), *torch.autograd.grad(out, (x, gain), pull)]


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 3, 2, 7), (0, 7)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A mean over D = 7 and three products: a few roundings of 2^-53 and 2^-24.
    [(torch.float64, 1e-14), (torch.float32, 2e-6)],
)
def test_values_and_gradients_equal_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    x, pull = gaussian(*shape, dtype=dtype), gaussian(*shape, seed=1, dtype=dtype)
    gain = gaussian(7, seed=2, dtype=dtype)
    results = [forward_and_gradients(norm, x, gain, pull) for norm in (rms_norm, reference)]
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def test_backward_passes_the_gradient_check() -> None:
    x, gain = gaussian(3, 5).requires_grad_(), gaussian(5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x, gain, EPS), (x, gain))


def test_gradient_check_holds_for_one_input_at_a_time() -> None:
    x, gain = gaussian(3, 5), gaussian(5, seed=1)
    inner = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, gain, EPS), (inner,))
    outer = gain.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda gain: rms_norm(x, gain, EPS), (outer,))


@pytest.mark.parametrize("gain_dtype", [torch.bfloat16, torch.float32])
def test_bf16_input_equals_the_reference_and_is_near_exact(gain_dtype: torch.dtype) -> None:
    x, gain = gaussian(64, 128), gaussian(128, seed=1)
    pull = gaussian(64, 128, seed=2)
    rounded = [x.bfloat16(), gain.to(gain_dtype), pull.bfloat16()]
    if gain_dtype == torch.float32:
        rounded[2] = pull.float()
    results = [forward_and_gradients(norm, *rounded) for norm in (rms_norm, reference)]
    exact = forward_and_gradients(reference, *(value.double() for value in rounded))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=0)
    assert results[0][0].dtype == gain_dtype
    for ours, theirs, true in zip(*results, exact, strict=True):
        assert ours.dtype == theirs.dtype
        errors = [(value.double() - true).norm() / true.norm() for value in (ours, theirs)]
        # Rounding to bf16 once or twice costs at most 2^-8 each; ours may not round more often,
        # but for fp32's own last bit.
        assert errors[0] < 2 * 2.0**-8
        assert errors[0] < errors[1] * 1.05 + 2.0**-23


def test_wide_input_is_rounded_once_to_the_gains_dtype_and_its_gradient_is_wide() -> None:
    x, gain, pull = gaussian(64, 128).float(), gaussian(128, seed=1).bfloat16(), gaussian(64, 128)
    ours, theirs = (
        forward_and_gradients(norm, x, gain, pull.bfloat16()) for norm in (rms_norm, reference)
    )
    assert [value.dtype for value in ours] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_without_gradient_are_those_with_it(dtype: torch.dtype) -> None:
    x, gain = gaussian(3, 7, dtype=dtype), gaussian(7, seed=1, dtype=dtype)
    with torch.no_grad():
        out = rms_norm(x, gain, EPS)
    assert torch.equal(out, rms_norm(x.requires_grad_(), gain, EPS))
    assert not out.requires_grad


def test_mean_of_squares_of_bf16_is_taken_in_fp32() -> None:
    # 4096 squares of 1/16 added one by one in bf16 stick at 1; the rms is 1/16 exactly.
    x = torch.full((1, 4096), 0.0625, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, torch.ones(4096, dtype=torch.bfloat16), 0.0), x * 16)


def test_rows_have_unit_rms_and_scale_drops_out() -> None:
    x = gaussian(5, 64)
    gain = torch.ones(64, dtype=torch.float64)
    out = rms_norm(x, gain, 0.0)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(rms_norm(x * 1000, gain, 0.0), out)


def test_zero_row_stays_zero_and_has_finite_gradients() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    out = rms_norm(x, torch.ones(8), EPS)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 8))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((2, 8), EPS**-0.5))


def test_inputs_and_incoming_gradient_stay_as_they_are() -> None:
    tensors = [gaussian(3, 5), gaussian(5, seed=1), gaussian(3, 5, seed=2)]
    copies = [tensor.clone() for tensor in tensors]
    x, gain, pull = tensors
    x.requires_grad_()
    gain.requires_grad_()
    torch.autograd.grad(rms_norm(x, gain, EPS), (x, gain), pull)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor.detach(), copy)


def test_second_derivative_is_refused_instead_of_wrong() -> None:
    x = gaussian(2, 4).requires_grad_()
    out = rms_norm(x, torch.ones(4, dtype=torch.float64), EPS)
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
