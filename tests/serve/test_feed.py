"""The engine's feed-forward against the model's own modules, for every way to compute it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_engine import tiny_config
from tiny_model import build
from torch import Tensor

from fivefold.models.layer import GatedMlp
from fivefold.models.moe import MoE
from fivefold.ops.experts import reference, run_experts
from fivefold.serve import feed as feed_module
from fivefold.serve.feed import FusedFeed

TOKENS = [1, 2, 64, 65]
MANY = {"n_routed_experts": 40}
"""Ten experts behind each chosen one."""


def moe_of(**fields: Any) -> MoE:
    moe = build(tiny_config(**fields)).layers[1].mlp
    assert isinstance(moe, MoE)
    return moe


def hidden(tokens: int, width: int = 64) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens))


def ways_of(monkeypatch: pytest.MonkeyPatch, moe: MoE) -> list[str]:
    """Return the list that each computation of routed experts adds its name to."""
    ways: list[str] = []

    def told(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: ways.append(name) or inner(*args)

    monkeypatch.setattr(FusedFeed, "_run_one", told("one", FusedFeed._run_one))
    monkeypatch.setattr(FusedFeed, "_run_all", told("all", FusedFeed._run_all))
    monkeypatch.setattr(feed_module, "run_experts", told("sorted", run_experts))
    moe.dispatch = feed_module.run_experts
    return ways


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    "fields",
    [{}, {"n_shared_experts": 0}, {"n_shared_experts": 2}, MANY, {**MANY, "n_shared_experts": 0}],
    ids=str,
)
@torch.inference_mode()
def test_experts_equal_the_models(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], tokens: int
) -> None:
    moe = moe_of(**fields)
    x = hidden(tokens)
    expected, routing = moe(x[None])
    ways = ways_of(monkeypatch, moe)
    out, chosen = FusedFeed(moe)(x)
    # Sums of a thousand products of order one, in another order: some tens of 2^-24.
    torch.testing.assert_close(out, expected[0], rtol=1e-5, atol=1e-5)
    assert chosen is not None
    assert torch.equal(chosen, routing.chosen_TA)
    few = "sorted" if "n_routed_experts" in fields else "all"
    assert ways == [{1: "one", 65: "sorted"}.get(tokens, few)]


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("fields", [{}, {"n_shared_experts": 0}, MANY], ids=str)
@torch.inference_mode()
def test_bf16_is_as_near_to_exact_as_the_model(fields: dict[str, Any], tokens: int) -> None:
    moe = moe_of(**fields).bfloat16()
    x = hidden(tokens).bfloat16()
    theirs, routing = moe(x[None])
    ours, chosen = FusedFeed(moe)(x)
    assert chosen is not None
    assert torch.equal(chosen, routing.chosen_TA)
    assert ours.dtype == torch.bfloat16
    weight_TA, _ = moe.gate(x)
    exact = moe.double()
    true = reference(
        x.double(), chosen, weight_TA.double(), exact.experts.gate_up, exact.experts.down
    )
    if exact.shared_experts is not None:
        true = true + exact.shared_experts(x.double())
    errors = [(out.double() - true).norm() / true.norm() for out in (ours, theirs[0])]
    # Four roundings to bf16 stand between input and result, each of at most 2^-8.
    assert errors[0] < 4 * 2.0**-8
    assert errors[0] < 1.25 * errors[1] + 2.0**-10


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.inference_mode()
def test_a_dense_layer_equals_the_models(dtype: torch.dtype, tokens: int) -> None:
    mlp = build(tiny_config()).layers[0].mlp
    assert isinstance(mlp, GatedMlp)
    mlp, x = mlp.to(dtype), hidden(tokens).to(dtype)
    out, chosen = FusedFeed(mlp)(x)
    torch.testing.assert_close(out, mlp(x), rtol=1e-5, atol=1e-5)
    assert chosen is None


@pytest.mark.parametrize("tokens", TOKENS)
@torch.inference_mode()
def test_another_dispatcher_gets_all_tokens(tokens: int) -> None:
    moe, x = moe_of(), hidden(tokens)
    expected, _ = moe(x[None])
    sizes: list[int] = []

    def dispatch(x_TD: Tensor, *args: Tensor) -> Tensor:
        sizes.append(len(x_TD))
        return run_experts(x_TD, *args)

    moe.dispatch = dispatch
    out, _ = FusedFeed(moe)(x)
    torch.testing.assert_close(out, expected[0], rtol=1e-5, atol=1e-5)
    assert sizes == [tokens]
