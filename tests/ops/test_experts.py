"""Grouped experts against the loop over experts, forward and backward, for every way to route."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onednn_calls import count_onednn_calls
from torch import Tensor

from fivefold.ops.experts import reference, run_experts, sort_pairs

T, D, E, A, F = 11, 6, 5, 2, 4


def gaussian(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(tokens: int = T, experts: int = E, chosen: int = A) -> Tensor:
    """Route each token to `chosen` different experts."""
    keys = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(1))
    return keys.argsort(-1)[:, :chosen]


ROUTES = {
    "spread": spread(),
    "two_experts_without_token": spread(experts=E - 2),
    "first_and_last_without_token": spread(experts=E - 2) + 1,
    "all_to_one": torch.full((T, 1), 3),
    "all_to_two": torch.tensor([[4, 0]]).expand(T, 2),
    "all_experts": spread(chosen=E),
    "one_token": spread(tokens=1),
    "no_token": spread(tokens=0),
}


def inputs(chosen: Tensor, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return x, weights, gate_up, down, scaled so that every product is of order one."""
    return [
        gaussian(chosen.shape[0], D, seed=2, dtype=dtype),
        gaussian(*chosen.shape, seed=3, dtype=dtype).abs(),
        gaussian(E, 2 * F, D, seed=4, dtype=dtype) / D**0.5,
        gaussian(E, D, F, seed=5, dtype=dtype) / F**0.5,
    ]


def forward_and_gradients(run, chosen: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    x, weight, gate_up, down = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = run(x, chosen, weight, gate_up, down)
    pull = gaussian(*out.shape, seed=6, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Sums of at most A x F + D = 16 terms of order one: a few dozen roundings at the most.
    [(torch.float64, 1e-13), (torch.float32, 5e-6)],
)
def test_values_and_gradients_equal_the_reference(
    route: str, dtype: torch.dtype, tolerance: float
) -> None:
    chosen = ROUTES[route]
    results = [
        forward_and_gradients(run, chosen, inputs(chosen, dtype))
        for run in (run_experts, reference)
    ]
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("route", ["spread", "first_and_last_without_token", "all_to_one"])
def test_backward_passes_the_gradient_check(route: str) -> None:
    chosen = ROUTES[route][:4]
    leaves = [tensor.requires_grad_() for tensor in inputs(chosen)]

    def run(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return run_experts(x, chosen, weight, gate_up, down)

    assert torch.autograd.gradcheck(run, leaves)


@settings(max_examples=25)
@given(data=st.data())
def test_any_route_equals_the_reference(data: st.DataObject) -> None:
    places = st.lists(st.permutations(range(E)).map(lambda order: order[:3]), max_size=9)
    chosen = torch.tensor(data.draw(places), dtype=torch.int64).view(-1, 3)
    results = [
        forward_and_gradients(run, chosen, inputs(chosen)) for run in (run_experts, reference)
    ]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


def test_idle_expert_gets_zero_gradient_and_frozen_weights_none() -> None:
    chosen = ROUTES["first_and_last_without_token"]
    _, _, _, grad_gate_up, grad_down = forward_and_gradients(run_experts, chosen, inputs(chosen))
    for gradient in (grad_gate_up, grad_down):
        assert torch.equal(gradient[[0, E - 1]], torch.zeros_like(gradient[[0, E - 1]]))
        assert gradient[1:-1].abs().sum(dim=(1, 2)).min() > 0
    x, weight, gate_up, down = inputs(chosen)
    x.requires_grad_()
    (grad_x,) = torch.autograd.grad(run_experts(x, chosen, weight, gate_up, down).sum(), [x])
    assert grad_x.abs().min() > 0


def test_sizes_that_onednn_multiplies_equal_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, width, inner, experts = 250, 160, 128, 4
    chosen = torch.stack([torch.arange(tokens) % 2, 2 + torch.arange(tokens) % 2], 1)
    tensors = [
        gaussian(tokens, width, seed=2, dtype=torch.float32),
        gaussian(tokens, 2, seed=3, dtype=torch.float32).abs(),
        gaussian(experts, 2 * inner, width, seed=4, dtype=torch.float32) / width**0.5,
        gaussian(experts, width, inner, seed=5, dtype=torch.float32) / inner**0.5,
    ]
    exact = forward_and_gradients(reference, chosen, [tensor.double() for tensor in tensors])
    calls = count_onednn_calls(monkeypatch)
    ours = forward_and_gradients(run_experts, chosen, tensors)
    # Two products forward and four backward, of 125 rows and three of padding each.
    assert len(calls) == 6 * experts
    for mine, true in zip(ours, exact, strict=True):
        # Sums of at most 256 terms of order one: some hundred roundings of 2^-24.
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_bf16_is_as_near_to_exact_as_the_reference(weight_dtype: torch.dtype) -> None:
    chosen = spread(tokens=200, chosen=4)
    tensors = [tensor.bfloat16() for tensor in inputs(chosen)]
    tensors[1] = inputs(chosen)[1].to(weight_dtype)
    results = [forward_and_gradients(run, chosen, tensors) for run in (run_experts, reference)]
    exact = forward_and_gradients(reference, chosen, [tensor.double() for tensor in tensors])
    for ours, theirs, true in zip(*results, exact, strict=True):
        assert ours.dtype == theirs.dtype
        errors = [(value.double() - true).norm() / true.norm() for value in (ours, theirs)]
        # Five roundings to bf16 stand between input and result, each of at most 2^-8.
        assert errors[0] < 5 * 2.0**-8
        assert errors[0] < 1.25 * errors[1] + 2.0**-9


def test_order_of_a_tokens_experts_does_not_matter() -> None:
    chosen = spread(chosen=4)
    x, weight, gate_up, down = inputs(chosen)
    shuffle = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        run_experts(x, chosen[:, shuffle], weight[:, shuffle], gate_up, down),
        run_experts(x, chosen, weight, gate_up, down),
        rtol=1e-14,
        atol=1e-14,
    )


def test_token_does_not_depend_on_its_batch() -> None:
    chosen = spread()
    x, weight, gate_up, down = inputs(chosen)
    whole = run_experts(x, chosen, weight, gate_up, down)
    for token in range(T):
        part = slice(token, token + 1)
        alone = run_experts(x[part], chosen[part], weight[part], gate_up, down)
        torch.testing.assert_close(alone, whole[part], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("route", ROUTES)
def test_values_without_gradient_are_those_with_it(route: str) -> None:
    chosen = ROUTES[route]
    x, weight, gate_up, down = inputs(chosen, torch.float32)
    with torch.no_grad():
        out = run_experts(x, chosen, weight, gate_up, down)
    assert torch.equal(out, run_experts(x.requires_grad_(), chosen, weight, gate_up, down))
    assert not out.requires_grad


def test_repeated_runs_are_identical() -> None:
    chosen = spread(tokens=200, chosen=4)
    tensors = inputs(chosen, torch.float32)
    first, second = (forward_and_gradients(run_experts, chosen, tensors) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_inputs_stay_as_they_are() -> None:
    chosen = spread()
    tensors = inputs(chosen)
    copies = [tensor.clone() for tensor in tensors]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    x, weight, gate_up, down = leaves
    torch.autograd.grad(run_experts(x, chosen, weight, gate_up, down).sum(), leaves)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor.detach(), copy)


def test_sort_groups_pairs_by_expert_in_token_order() -> None:
    chosen = torch.tensor([[2, 0], [0, 2], [3, 0]])
    pairs = sort_pairs(chosen, 5)
    assert pairs.token_P.tolist() == [0, 1, 2, 0, 1, 2]
    assert pairs.place_TA.tolist() == [[3, 0], [1, 4], [5, 2]]
    assert pairs.parts == [(0, slice(0, 3)), (2, slice(3, 5)), (3, slice(5, 6))]


def test_padding_lies_behind_each_expert_and_belongs_to_no_pair() -> None:
    chosen = torch.arange(3).expand(70, 3)
    pairs = sort_pairs(chosen, 4)
    assert pairs.parts == [(0, slice(0, 96)), (1, slice(96, 192)), (2, slice(192, 288))]
    assert torch.equal(pairs.token_P[pairs.place_TA], torch.arange(70)[:, None].expand(-1, 3))
    assert torch.equal(pairs.place_TA // 96, chosen)
    assert len(pairs.place_TA.unique()) == 210


def test_padding_that_would_overflow_leaves_gradients_finite() -> None:
    x = torch.ones(34, 64)
    x[0] = 1e30
    chosen = torch.tensor([[0], *[[1]] * 33])
    gate_up = torch.full((2, 128, 64), 0.01)
    gate_up[1] = 1e10
    gate_up, down = gate_up.requires_grad_(), torch.full((2, 64, 64), 1e-30, requires_grad=True)
    out = run_experts(x, chosen, torch.ones(34, 1), gate_up, down)
    gradients = torch.autograd.grad(out[1:].sum(), (gate_up, down))
    assert all(gradient[1].isfinite().all() for gradient in gradients)


def test_second_derivative_is_refused_instead_of_wrong() -> None:
    chosen = spread()
    x, weight, gate_up, down = inputs(chosen)
    x.requires_grad_()
    out = run_experts(x, chosen, weight, gate_up, down)
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
