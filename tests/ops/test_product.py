"""Products through oneDNN against float64, with gradients, for every layout of the factors."""

import pytest
import torch
from onednn_calls import count_onednn_calls
from torch.testing import assert_close

from fivefold.ops.product import Packed, common_rows, linear, product, reference

# One below the size from which oneDNN is called, one above, one far above and not a round number.
SHAPES = [(3, 40, 24), (64, 256, 160), (333, 257, 131)]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_larger_shapes_reach_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_onednn_calls(monkeypatch)
    for rows, inputs, outputs in SHAPES:
        linear(_random(rows, inputs), _random(outputs, inputs))
    assert len(calls) == 2, "this build of torch has no oneDNN, or its entry point has moved"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_and_its_gradients_are_those_of_float64(
    shape: tuple[int, int, int], has_bias: bool
) -> None:
    rows, inputs, outputs = shape
    leaves = [_random(rows, inputs), _random(outputs, inputs, seed=1)]
    leaves += [_random(outputs, seed=2)] if has_bias else []
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    weights = _random(rows, outputs, seed=3)
    out, oracle = linear(*ours), reference(*exact)
    assert_close(out.double(), oracle, rtol=1e-4, atol=1e-4)
    (out * weights).sum().backward()
    (oracle * weights.double()).sum().backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("learns", ["x", "weight", "bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_what_learns_gets_a_gradient_and_costs_a_product(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], learns: str
) -> None:
    rows, inputs, outputs = shape
    names = ["x", "weight", "bias"]
    leaves = [_random(rows, inputs), _random(outputs, inputs, seed=1), _random(outputs, seed=2)]
    pull = _random(rows, outputs, seed=3)
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    (reference(*exact) * pull.double()).sum().backward()
    for name, leaf in zip(names, leaves, strict=True):
        leaf.requires_grad_(name == learns)
    calls = count_onednn_calls(monkeypatch)
    (linear(*leaves) * pull).sum().backward()
    for name, leaf, oracle in zip(names, leaves, exact, strict=True):
        assert (leaf.grad is not None) == (name == learns)
        if leaf.grad is not None:
            assert oracle.grad is not None
            assert_close(leaf.grad.double(), oracle.grad, rtol=1e-4, atol=1e-3)
    forward_and_backward = 2 if learns != "bias" else 1
    assert len(calls) == (forward_and_backward if shape != SHAPES[0] else 0)


def test_linear_takes_leading_axes_and_strided_input() -> None:
    x, weight = _random(4, 64, 300)[..., :256], _random(160, 256, seed=1)
    x_leaf = x.clone().requires_grad_()
    out = linear(x_leaf[:, ::2], weight)
    assert_close(out, reference(x[:, ::2], weight), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert x_leaf.grad is not None
    assert_close(x_leaf.grad[:, ::2], weight.sum(0).expand(4, 32, -1), rtol=1e-4, atol=1e-4)
    assert not x_leaf.grad[:, 1::2].any()


@pytest.mark.parametrize("shape", [*SHAPES, (1, 4096, 1024), (1024, 2048, 8)])
def test_product_of_every_layout(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    left, right = _random(rows, inner), _random(inner, columns, seed=1)
    oracle = left.double() @ right.double()
    for left_view in (left, left.T.contiguous().T):
        for right_view in (right, right.T.contiguous().T):
            assert_close(product(left_view, right_view).double(), oracle, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 64, 300])
@pytest.mark.parametrize("size", [(24, 16), (336, 256), (1100, 256)])
def test_packed_weight_serves_any_number_of_rows(rows: int, size: tuple[int, int]) -> None:
    weight, bias = _random(*size), _random(size[0], seed=1)
    packed, x = Packed(weight), _random(rows, size[1], seed=2)
    assert_close(packed.linear(x), reference(x, weight), rtol=1e-4, atol=1e-4)
    assert_close(packed.linear(x, bias), reference(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_torchs_own(dtype: torch.dtype) -> None:
    x, weight = _random(300, 256).to(dtype), _random(160, 256, seed=1).to(dtype)
    assert torch.equal(linear(x, weight), reference(x, weight))
    assert torch.equal(product(x, weight.T), x @ weight.T)
    assert torch.equal(Packed(weight).linear(x), reference(x, weight))


def test_the_same_shapes_give_the_same_bits() -> None:
    x, weight = _random(333, 257), _random(131, 257, seed=1)
    first = linear(x, weight)
    assert all(torch.equal(first, linear(x.clone(), weight.clone())) for _ in range(5))


@pytest.mark.parametrize("rows", [3, 333])
def test_the_result_may_be_changed_in_place(rows: int) -> None:
    x, weight = _random(rows, 257).requires_grad_(), _random(131, 257, seed=1)
    linear(x, weight).mul_(2).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, 2 * weight.sum(0).expand(rows, -1), rtol=1e-4, atol=1e-3)


def test_few_numbers_of_rows_occur() -> None:
    assert len({common_rows(rows) for rows in range(33)}) == 17
    assert all(rows <= common_rows(rows) < rows * 1.25 for rows in range(1, 33))
    padded = {common_rows(rows) for rows in range(33, 4097)}
    assert len(padded) < 90
    assert all(rows <= common_rows(rows) < rows + 32 + rows / 16 for rows in range(5000))


@pytest.mark.parametrize("size", [(336, 256), (1100, 256), (64, 4160)])
def test_few_numbers_of_rows_reach_onednn(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """It keeps half a megabyte of code for each: that of a server must not grow with its load."""
    calls = count_onednn_calls(monkeypatch)
    packed, weight = Packed(_random(*size)), _random(*size, seed=1)
    for rows in range(1, 129):
        x = _random(rows, size[1])
        packed.linear(x)
        linear(x, weight)
    assert len({rows for rows, _ in calls}) <= 16 + 3
