"""Rows alone, among others and at any place: the same bits."""

import pytest
import torch
from torch.nn import functional as F

from fivefold.ops import product
from fivefold.ops.batch_invariant import BatchInvariant, linear, sigmoid, silu

SHAPES = [(128, 64), (64, 128), (128, 2048), (32, 224), (24, 32), (8, 16), (20, 12), (17, 33)]


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_has_the_same_bits_in_any_company(inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    whole = linear(x, weight)
    torch.testing.assert_close(whole, F.linear(x, weight), rtol=1e-5, atol=1e-4)
    for rows in (1, 2, 3, 7, 8, 9, 31, 64):
        for begin in (0, 1, 5, 50):
            assert torch.equal(linear(x[begin : begin + rows], weight), whole[begin : begin + rows])


@pytest.mark.parametrize("function", [sigmoid, silu])
def test_an_activation_has_the_same_bits_at_any_place(function) -> None:
    x = 4 * torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
    whole = function(x)
    for row in range(0, 200, 7):
        assert torch.equal(function(x[row]), whole[row])
    known = {sigmoid: torch.sigmoid, silu: F.silu}[function]
    torch.testing.assert_close(whole, known(x))


def test_plain_sigmoids_need_the_replacement() -> None:
    """If this fails, torch computes what is left over as it does the rest: drop ours."""
    x = 4 * torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
    whole = torch.sigmoid(x)
    assert not all(torch.equal(torch.sigmoid(x[row]), whole[row]) for row in range(200))


@pytest.mark.parametrize("function", [sigmoid, silu])
def test_gradients_of_activations_are_exact_and_finite(function) -> None:
    x = torch.linspace(-6, 6, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    far = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    function(far).sum().backward()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


def test_gradients_of_the_product_are_those_of_a_plain_one() -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_the_mode_replaces_while_it_is_entered() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 64, generator=generator)
    weight = torch.randn(40, 64, generator=generator)
    with BatchInvariant():
        assert torch.equal(F.linear(x, weight), linear(x, weight))
        assert torch.equal(product.linear(x, weight), linear(x, weight))
        assert torch.equal(product.product(x, weight.T), linear(x, weight))
        assert torch.equal(x.sigmoid(), sigmoid(x))
        assert torch.equal(F.silu(x), silu(x))
    assert torch.equal(F.linear(x, weight), torch.nn.Linear.forward(_module(weight), x))


def _module(weight: torch.Tensor) -> torch.nn.Linear:
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data.copy_(weight)
    return module
