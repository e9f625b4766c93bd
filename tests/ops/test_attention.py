"""Latent attention's two forms are one function; both against attention written out in loops."""

import pytest
import torch
from torch import Tensor

from fivefold.ops.attention import attend_absorbed, attend_expanded

B, H, N, R, C, V = 2, 3, 5, 4, 7, 6
SCALE = (N + R) ** -0.5
FORMS = pytest.mark.parametrize("attend", [attend_expanded, attend_absorbed])


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return q_nope, q_rope, latent, rope, kv_b."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (B, queries, H, N),
        (B, queries, H, R),
        (B, keys, C),
        (B, keys, R),
        (H, N + V, C),
    ]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def causal(queries: int, keys: int) -> Tensor:
    """Let the last query see all keys, and each one before it one fewer."""
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return visible.expand(B, queries, keys)


def scattered(queries: int, keys: int) -> Tensor:
    """Choose keys at random, another set for each row and query, at least one."""
    chosen = torch.rand(B, queries, keys, generator=torch.Generator().manual_seed(1)) < 0.4
    first = torch.arange(keys) == torch.arange(queries)[:, None] % keys
    return chosen | first


MASKS = {
    "none": (9, 9, None),
    "causal": (9, 9, causal(9, 9)),
    "scattered": (9, 9, scattered(9, 9)),
    "chunk_behind_a_prefix": (4, 9, causal(4, 9)),
    "one_query": (1, 9, None),
    "one_query_scattered": (1, 9, scattered(1, 9)),
    "one_key": (1, 1, None),
}


def by_loops(tensors: list[Tensor], visible: Tensor | None) -> Tensor:
    """Attend one query and head at a time, as the formula stands."""
    q_nope, q_rope, latent, rope, kv_b = tensors
    queries, keys = q_nope.shape[1], latent.shape[1]
    out = torch.zeros(B, queries, H, V, dtype=q_nope.dtype)
    for row in range(B):
        for query in range(queries):
            seen = torch.arange(keys)[: query + 1 if visible is None and queries > 1 else keys]
            if visible is not None:
                seen = visible[row, query].nonzero().flatten()
            for head in range(H):
                up_k, up_v = kv_b[head].split([N, V])
                scores = (latent[row, seen] @ up_k.T) @ q_nope[row, query, head]
                scores = (scores + rope[row, seen] @ q_rope[row, query, head]) * SCALE
                out[row, query, head] = scores.softmax(0) @ (latent[row, seen] @ up_v.T)
    return out


def forward_and_gradients(attend, tensors: list[Tensor], visible: Tensor | None) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = attend(*leaves, visible, SCALE)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull.to(out.dtype))]


@FORMS
@pytest.mark.parametrize("mask", MASKS)
def test_form_equals_the_formula_written_out(attend, mask: str) -> None:
    queries, keys, visible = MASKS[mask]
    tensors = inputs(queries, keys)
    out = attend(*tensors, visible, SCALE)
    torch.testing.assert_close(out, by_loops(tensors, visible), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_forms_agree_in_values_and_all_gradients(mask: str) -> None:
    queries, keys, visible = MASKS[mask]
    tensors = inputs(queries, keys)
    results = [
        forward_and_gradients(attend, tensors, visible)
        for attend in (attend_absorbed, attend_expanded)
    ]
    for absorbed, expanded in zip(*results, strict=True):
        assert absorbed.shape == expanded.shape
        torch.testing.assert_close(absorbed, expanded, rtol=1e-12, atol=1e-12)


@FORMS
def test_no_mask_is_causal_for_several_queries(attend) -> None:
    tensors = inputs(9, 9)
    assert torch.equal(
        attend(*tensors, None, SCALE)[:, 0], attend(*tensors, causal(9, 9), SCALE)[:, 0]
    )
    torch.testing.assert_close(
        attend(*tensors, None, SCALE), attend(*tensors, causal(9, 9), SCALE), rtol=1e-13, atol=0
    )


@FORMS
def test_last_query_alone_sees_what_it_saw_in_the_row(attend) -> None:
    q_nope, q_rope, *rest = inputs(9, 9)
    whole = attend(q_nope, q_rope, *rest, None, SCALE)
    alone = attend(q_nope[:, -1:], q_rope[:, -1:], *rest, None, SCALE)
    torch.testing.assert_close(alone, whole[:, -1:], rtol=1e-12, atol=1e-13)


@FORMS
def test_invisible_keys_have_no_influence_and_no_gradient(attend) -> None:
    visible = scattered(4, 9)
    visible[:, :, 5] = False
    tensors = inputs(4, 9)
    changed = [tensor.clone() for tensor in tensors]
    changed[2][:, 5] += 100
    changed[3][:, 5] -= 100
    assert torch.equal(attend(*tensors, visible, SCALE), attend(*changed, visible, SCALE))
    _, _, _, grad_latent, grad_rope, _ = forward_and_gradients(attend, tensors, visible)
    assert not grad_latent[:, 5].any()
    assert not grad_rope[:, 5].any()


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_stay_near_the_exact_result(attend, dtype: torch.dtype) -> None:
    visible = scattered(9, 9)
    tensors = [tensor.to(dtype) for tensor in inputs(9, 9)]
    results = forward_and_gradients(attend, tensors, visible)
    exact = forward_and_gradients(attend, [tensor.double() for tensor in tensors], visible)
    # Half a unit in the last place for each of the roundings between input and result.
    unit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}[dtype]
    for ours, true in zip(results, exact, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - true).norm() / true.norm() < 12 * unit


@FORMS
def test_equal_scores_average_the_values(attend) -> None:
    q_nope, q_rope, latent, rope, kv_b = inputs(4, 9)
    visible = scattered(4, 9)
    out = attend(torch.zeros_like(q_nope), torch.zeros_like(q_rope), latent, rope, kv_b, visible, 1)
    share = visible.double() / visible.sum(-1, keepdim=True)
    values = torch.einsum("bsc,hvc->bshv", latent, kv_b[:, N:])
    expected = torch.einsum("bts,bshv->bthv", share, values)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
