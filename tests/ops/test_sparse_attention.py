"""Gathered attention against masked attention over whole scores, forward and all gradients."""

from collections.abc import Sequence

import pytest
import torch
from allocation import LargestTensor
from torch import Tensor

from fivefold.ops import workspace
from fivefold.ops.attention import attend_absorbed, attend_expanded
from fivefold.ops.sparse_attention import (
    attend_gathered,
    attend_gathered_with_shares,
    reference,
)

B, H, N, R, C, V = 2, 3, 5, 4, 7, 6
SCALE = (N + R) ** -0.5
BLOCKS = pytest.mark.parametrize("numbers", [1, 400, 2**21])


def inputs(
    queries: int, keys: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return q_nope, q_rope, latent, rope, kv_b."""
    generator = torch.Generator().manual_seed(seed)
    q_nope, q_rope, latent, rope, kv_b = (
        torch.randn(shape, generator=generator, dtype=dtype)
        for shape in (
            (B, queries, H, N),
            (B, queries, H, R),
            (B, keys, C),
            (B, keys, R),
            (H, N + V, C),
        )
    )
    return q_nope, q_rope, latent, rope, kv_b


def some(queries: int, keys: int, k: int, *, least: int = 1) -> Tensor:
    """Select `least` to `k` causal keys of each query, ascending, padded with -1."""
    generator = torch.Generator().manual_seed(1)
    selected = torch.full((B, queries, k), -1, dtype=torch.int32)
    for row in range(B):
        for query in range(queries):
            seen = keys - queries + query + 1
            count = int(torch.randint(least, k + 1, (1,), generator=generator))
            places = torch.randperm(seen, generator=generator)[:count].sort().values
            selected[row, query, : len(places)] = places.int()
    return selected


def every(tokens: int, k: int) -> Tensor:
    """Select all causal keys of each query, in `k` places."""
    places = torch.arange(k).expand(B, tokens, k)
    return places.where(places <= torch.arange(tokens)[:, None], -1).int()


def as_mask(selected: Tensor, keys: int) -> Tensor:
    """Mark the selected keys, one at a time."""
    mask = torch.zeros(*selected.shape[:2], keys, dtype=torch.bool)
    for row, query, place in (selected >= 0).nonzero().tolist():
        mask[row, query, int(selected[row, query, place])] = True
    return mask


def forward_and_gradients(attend, tensors: Sequence[Tensor], *rest) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = attend(*leaves, *rest, SCALE)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull.to(out.dtype))]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@BLOCKS
@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize("dense", [attend_expanded, attend_absorbed])
def test_sparse_is_dense_where_everything_is_selected(
    dense, extra: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_CACHE_NUMBERS", numbers)
    tokens = 23
    tensors = inputs(tokens, tokens)
    ours = forward_and_gradients(attend_gathered, tensors, every(tokens, tokens + extra))
    assert_same(ours, forward_and_gradients(dense, tensors, None))


@BLOCKS
@pytest.mark.parametrize(
    ("queries", "keys", "k"), [(23, 23, 1), (23, 23, 6), (4, 31, 9), (1, 8, 3)]
)
@pytest.mark.parametrize("oracle", [attend_expanded, attend_absorbed])
def test_few_selected_keys_equal_masked_attention(
    oracle, queries: int, keys: int, k: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_CACHE_NUMBERS", numbers)
    tensors, selected = inputs(queries, keys), some(queries, keys, k)
    ours = forward_and_gradients(attend_gathered, tensors, selected)
    assert_same(ours, forward_and_gradients(oracle, tensors, as_mask(selected, keys)))
    assert_same(ours, forward_and_gradients(reference, tensors, selected))


def test_gradients_equal_finite_differences() -> None:
    leaves = inputs(3, 5)
    for leaf in leaves:
        leaf.requires_grad_()
    selected = some(3, 5, 3, least=0)

    def attend(
        q_nope: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor, kv_b: Tensor
    ) -> Tensor:
        return attend_gathered(q_nope, q_rope, latent, rope, kv_b, selected, SCALE)

    assert torch.autograd.gradcheck(attend, leaves)


def test_query_without_keys_gets_zeros_and_gives_no_gradient() -> None:
    tensors, selected = inputs(9, 9), some(9, 9, 4)
    selected[0, 3] = selected[1, 8] = -1
    ours = forward_and_gradients(attend_gathered, tensors, selected)
    assert_same(ours, forward_and_gradients(reference, tensors, selected))
    out, grad_q_nope, grad_q_rope, *_ = ours
    for tensor in (out, grad_q_nope, grad_q_rope):
        assert not tensor[0, 3].any()
        assert not tensor[1, 8].any()


def test_unselected_keys_have_no_influence_and_no_gradient() -> None:
    tensors, selected = inputs(9, 9), some(9, 9, 4)
    chosen = as_mask(selected, 9).any(1)
    assert not chosen.all()
    changed = [tensor.clone() for tensor in tensors]
    changed[2][~chosen] = torch.nan
    changed[3][~chosen] = torch.nan
    ours = forward_and_gradients(attend_gathered, tensors, selected)
    for one, other in zip(
        ours, forward_and_gradients(attend_gathered, changed, selected), strict=True
    ):
        assert torch.equal(one, other)
    assert not ours[3][~chosen].any()
    assert not ours[4][~chosen].any()


def test_order_of_the_selection_does_not_matter() -> None:
    tensors, selected = inputs(9, 9), some(9, 9, 5)
    ours = forward_and_gradients(attend_gathered, tensors, selected)
    assert_same(ours, forward_and_gradients(attend_gathered, tensors, selected.flip(-1)))


def test_shares_are_the_mean_probabilities_of_the_heads() -> None:
    tensors, selected = inputs(9, 9), some(9, 9, 5)
    selected[1, 4] = -1
    tensors[0].requires_grad_()
    _, shares = attend_gathered_with_shares(*tensors, selected, SCALE)
    assert not shares.requires_grad
    q_nope, q_rope, latent, rope, kv_b = tensors
    for row in range(B):
        for query in range(9):
            places = selected[row, query][selected[row, query] >= 0].long()
            expected = torch.zeros(5, dtype=torch.float64)
            for head in range(H):
                scores = latent[row, places] @ kv_b[head, :N].T @ q_nope[row, query, head]
                scores = scores + rope[row, places] @ q_rope[row, query, head]
                expected[: len(places)] += (scores * SCALE).softmax(0) / H
            torch.testing.assert_close(shares[row, query], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_stay_near_the_exact_result(dtype: torch.dtype) -> None:
    tensors = [tensor.to(dtype) for tensor in inputs(23, 23)]
    selected = some(23, 23, 6)
    ours = forward_and_gradients(attend_gathered, tensors, selected)
    exact = forward_and_gradients(reference, [tensor.double() for tensor in tensors], selected)
    # Half a unit in the last place for each of the roundings between input and result.
    unit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}[dtype]
    for one, true in zip(ours, exact, strict=True):
        assert one.dtype == dtype
        assert (one.double() - true).norm() / true.norm() < 12 * unit


def test_gradients_are_the_same_bits_each_time() -> None:
    tensors = inputs(200, 200, torch.float32)
    selected = some(200, 200, 12)
    first = forward_and_gradients(attend_gathered, tensors, selected)
    for _ in range(3):
        again = forward_and_gradients(attend_gathered, tensors, selected)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_longest_context_makes_no_tensor_beyond_its_block() -> None:
    tokens, k = 16_384, 32
    generator = torch.Generator().manual_seed(0)
    q_nope, q_rope = (torch.randn(1, tokens, 2, 2, generator=generator) for _ in range(2))
    latent = torch.randn(1, tokens, 4, generator=generator)
    rope = torch.randn(1, tokens, 2, generator=generator)
    kv_b = torch.randn(2, 4, 4, generator=generator)
    leaves = (q_nope, q_rope, latent, rope, kv_b)
    for leaf in leaves:
        leaf.requires_grad_()
    selected = torch.randint(0, tokens, (1, tokens, k), generator=generator).int()
    with LargestTensor() as largest:
        out = attend_gathered(*leaves, selected, 0.5)
        torch.autograd.grad(out.sum(), leaves)
    # All gathered rows would be T x K x (C + R): six times the selection itself.
    assert largest.numbers <= 2**20, largest.shape
