"""The indexer's loss in closed form against autograd over whole tensors, in both forms."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from allocation import LargestTensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fivefold.ops import workspace
from fivefold.ops.index_loss import (
    IndexLoss,
    attention_keys,
    dense_index_loss,
    reference,
    selected_index_loss,
)
from fivefold.ops.sparse_attention import attend_gathered_with_shares
from fivefold.ops.sparse_index import sparse_index

B, T, I, J = 2, 21, 3, 4  # noqa: E741  # the shape legend of fivefold.models
H, N, R, C, V = 3, 5, 4, 7, 6
SCALE = 0.4
PACKED = torch.tensor([[0] * 5 + [1] * 12 + [-1] * 4, [3] * 1 + [4] * 20])
BLOCKS = pytest.mark.parametrize("numbers", [1, 300, 2**21])
DOCUMENTS = pytest.mark.parametrize("documents", [None, PACKED])


def indexer(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return index queries, index keys and head weights."""
    generator = torch.Generator().manual_seed(seed)
    q, key, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B, T, I, J), (B, T, J), (B, T, I))
    )
    return q, key, weight


def attention(seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return q_nope, q_rope, latent, rope, kv_b."""
    generator = torch.Generator().manual_seed(seed)
    q_nope, q_rope, latent, rope, kv_b = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B, T, H, N), (B, T, H, R), (B, T, C), (B, T, R), (H, N + V, C))
    )
    return q_nope, q_rope, latent, rope, kv_b


def expanded(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return queries and keys of every head."""
    q_nope, q_rope, latent, rope, kv_b = tensors
    return torch.cat([q_nope, q_rope], -1), attention_keys(latent, rope, kv_b, N)


def visible(documents: Tensor | None) -> Tensor:
    causal = torch.ones(B, T, T, dtype=torch.bool).tril()
    if documents is None:
        return causal
    own = documents[:, :, None]
    return causal & (own == documents[:, None]) & (own >= 0)


def as_mask(selected: Tensor) -> Tensor:
    mask = torch.zeros(B, T, T, dtype=torch.bool)
    for row, query, place in (selected >= 0).nonzero().tolist():
        mask[row, query, int(selected[row, query, place])] = True
    return mask


def with_gradients(
    loss: Callable[..., Any], tensors: Sequence[Tensor], *rest: Any, factor: float = 1.0
) -> list[Tensor]:
    """Return the total of `loss(*tensors, *rest)` and the gradients of `factor` times it."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = loss(*leaves, *rest)
    total = result.total if isinstance(result, IndexLoss) else result
    return [total.detach(), *torch.autograd.grad(total * factor, leaves)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@BLOCKS
@DOCUMENTS
def test_dense_form_equals_autograd_over_whole_tensors(
    documents: Tensor | None, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_CACHE_NUMBERS", numbers)
    q, k = expanded(attention())

    ours = with_gradients(dense_index_loss, indexer(), q, k, SCALE, documents, factor=0.7)
    whole = (q, k, SCALE, visible(documents))
    assert_same(ours, with_gradients(reference, indexer(), *whole, factor=0.7))


@BLOCKS
@DOCUMENTS
@pytest.mark.parametrize("keep", [1, 6, T])
def test_selected_form_equals_autograd_over_whole_tensors(
    keep: int, documents: Tensor | None, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_CACHE_NUMBERS", numbers)
    tensors = attention()
    q, k = expanded(tensors)
    selected = sparse_index(*indexer(), keep, documents)
    _, shares = attend_gathered_with_shares(*tensors, selected, SCALE)

    ours = with_gradients(selected_index_loss, indexer(), selected, shares, factor=-1.3)
    whole = (q, k, SCALE, as_mask(selected))
    assert_same(ours, with_gradients(reference, indexer(), *whole, factor=-1.3))


@DOCUMENTS
def test_forms_agree_where_everything_is_selected(documents: Tensor | None) -> None:
    tensors = attention()
    q, k = expanded(tensors)
    selected = sparse_index(*indexer(), T, documents)
    _, shares = attend_gathered_with_shares(*tensors, selected, SCALE)
    dense = with_gradients(dense_index_loss, indexer(), q, k, SCALE, documents)
    assert_same(dense, with_gradients(selected_index_loss, indexer(), selected, shares))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), mass=st.floats(0.1, 3.0))
def test_gradient_is_the_slope_of_the_loss(seed: int, mass: float) -> None:
    tensors = indexer(seed)
    selected = sparse_index(*tensors, 5, PACKED)
    generator = torch.Generator().manual_seed(seed)
    # Targets need not sum to one: the closed form carries their sum.
    target = torch.rand(B, T, 5, generator=generator, dtype=torch.float64) * mass
    target.masked_fill_(selected < 0, 0.0)
    ways = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in tensors]

    def moved(step: float) -> float:
        q, key, weight = (x + step * way for x, way in zip(tensors, ways, strict=True))
        return selected_index_loss(q, key, weight, selected, target).total.item()

    _, *gradients = with_gradients(selected_index_loss, tensors, selected, target)
    along = sum((g * way).sum().item() for g, way in zip(gradients, ways, strict=True))
    step = 1e-7
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(along, rel=1e-4, abs=1e-5)


def test_indexer_that_equals_the_attention_has_no_loss_and_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(B, T, 1, J, generator=generator, dtype=torch.float64)
    k = torch.randn(B, T, 1, J, generator=generator, dtype=torch.float64)
    # relu(x) - relu(-x) = x: two heads of opposite sign score as one of attention.
    heads = torch.cat([q, -q], 2) * SCALE
    weight = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(B, T, 2)
    tensors = (heads, k[:, :, 0], weight)
    total, *gradients = with_gradients(dense_index_loss, tensors, q, k, SCALE)
    assert total.item() == pytest.approx(0, abs=1e-12)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@DOCUMENTS
@pytest.mark.parametrize("keep", [1, 6, T, T + 1])
def test_mass_is_counted_over_selected_best_and_recent_keys(
    keep: int, documents: Tensor | None
) -> None:
    tensors = attention()
    q, k = expanded(tensors)
    result = dense_index_loss(*indexer(), q, k, SCALE, documents, k=keep)
    assert result.mass is not None
    scores = torch.einsum("bthq,bshq->bhts", q, k) * SCALE
    hidden = ~visible(documents)[:, None]
    p = scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0).mean(1)
    selected = as_mask(sparse_index(*indexer(), keep, documents))
    places = torch.arange(T)
    recent = places > places[:, None] - keep
    sums = [(p * selected).sum(), p.topk(min(keep, T)).values.sum(), (p * recent).sum()]
    torch.testing.assert_close(torch.stack(result.mass), torch.stack(sums))
    assert result.mass.selected <= result.mass.best * (1 + 1e-12)
    assert result.mass.best <= result.queries * (1 + 1e-12)
    counted = visible(documents).any(-1).sum()
    assert result.queries == counted
    if keep >= T:
        torch.testing.assert_close(result.mass.selected.item(), float(counted))


def test_padding_is_not_counted_and_gets_no_gradient() -> None:
    q, k = expanded(attention())
    tensors = indexer()
    selected = sparse_index(*tensors, 4, PACKED)
    target = torch.rand(B, T, 4, dtype=torch.float64).masked_fill(selected < 0, 0.0)
    assert selected_index_loss(*tensors, selected, target).queries == (PACKED >= 0).sum()
    for results in (
        with_gradients(dense_index_loss, tensors, q, k, SCALE, PACKED),
        with_gradients(selected_index_loss, tensors, selected, target),
    ):
        for gradient in results[1:]:
            assert gradient.isfinite().all()
            assert not gradient[PACKED < 0].any()


def test_only_the_indexer_gets_gradients() -> None:
    tensors, leaves = attention(), indexer()
    for tensor in tensors + leaves:
        tensor.requires_grad_()
    q, k = expanded(tensors)
    selected = sparse_index(*leaves, 5)
    _, shares = attend_gathered_with_shares(*tensors, selected, SCALE)
    total = dense_index_loss(*leaves, q, k, SCALE).total
    total = total + selected_index_loss(*leaves, selected, shares).total
    total.backward()
    assert all(tensor.grad is None for tensor in tensors)
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


def test_value_without_gradient_is_the_same() -> None:
    q, k = expanded(attention())
    leaves = indexer()
    leaves[0].requires_grad_()
    with torch.no_grad():
        probed = dense_index_loss(*leaves, q, k, SCALE).total
    trained = dense_index_loss(*leaves, q, k, SCALE).total
    assert torch.equal(probed, trained)
    assert trained.requires_grad
    assert not probed.requires_grad


def test_huge_scores_stay_finite() -> None:
    # One key takes all attention and another all of the indexer's: zeros in both distributions.
    q, k = expanded(attention())
    tensors = [tensor.float() * 100 for tensor in indexer()]
    wide = [tensor.double() for tensor in tensors]
    results = with_gradients(dense_index_loss, tensors, q.float() * 100, k.float(), 1.0)
    exact = with_gradients(reference, wide, q * 100, k, 1.0, visible(None))
    for ours, true in zip(results, exact, strict=True):
        assert ours.isfinite().all()
        assert (ours - true).norm() / true.norm() < 1e-5


def test_second_backward_is_refused() -> None:
    q, k = expanded(attention())
    leaves = indexer()
    leaves[0].requires_grad_()
    total = dense_index_loss(*leaves, q, k, SCALE).total
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="runs once"):
        total.backward()


def test_long_context_makes_no_tensor_beyond_its_block() -> None:
    keys, queries = 16_384, 512
    generator = torch.Generator().manual_seed(0)
    index_q = torch.randn(1, queries, 2, 2, generator=generator).requires_grad_()
    key = torch.randn(1, keys, 2, generator=generator).requires_grad_()
    weight = torch.randn(1, queries, 2, generator=generator).requires_grad_()
    q, k = torch.randn(1, queries, 1, 2), torch.randn(1, keys, 1, 2)
    selected = torch.randint(0, keys, (1, queries, 64), generator=generator).int()
    target = torch.full((1, queries, 64), 1 / 64)
    with LargestTensor() as largest:
        dense_index_loss(index_q, key, weight, q, k, 1.0, k=64).total.backward()
        selected_index_loss(index_q, key, weight, selected, target).total.backward()
    assert queries * keys > 2**21
    assert largest.numbers <= 2**21, largest.shape
