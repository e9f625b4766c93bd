"""Attention in fixed tiles: right, and blind to padding, company and where keys stand."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fivefold.ops import index_scores
from fivefold.ops.select_topk import select_topk
from fivefold.ops.stable_attention import reference, stable_attention, stable_selection

HEADS, NOPE, ROPE, VALUE, LATENT = 3, 6, 4, 5, 8
SCALE = 0.3


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    shapes = [
        (queries, HEADS, NOPE),
        (queries, HEADS, ROPE),
        (keys, LATENT + ROPE),
        (HEADS, NOPE + VALUE, LATENT),
    ]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def places_of(queries: int, keys: int) -> Tensor:
    """Let query p see the first of the keys up to its own, which stand at the end."""
    seen = keys - queries + 1 + torch.arange(queries)
    return torch.arange(keys).where(torch.arange(keys) < seen[:, None], -1)


@pytest.mark.numerics
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (3, 64), (4, 65), (7, 200)])
def test_it_is_attention(queries: int, keys: int) -> None:
    q_nope, q_rope, table, kv_b = inputs(queries, keys, torch.float64)
    places = places_of(queries, keys)
    found = stable_attention(q_nope, q_rope, table, places, kv_b, SCALE)
    expected = reference(q_nope, q_rope, table, places, kv_b, SCALE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 160), st.integers(0, 200), st.data())
def test_bits_depend_on_the_query_and_its_keys_alone(
    queries: int, more: int, padding: int, data: st.DataObject
) -> None:
    keys = queries + more
    q_nope, q_rope, table, kv_b = inputs(queries, keys)
    places = places_of(queries, keys)
    whole = stable_attention(q_nope, q_rope, table, places, kv_b, SCALE)
    row = data.draw(st.integers(0, queries - 1))
    own = places[row : row + 1]
    own = own[:, : int((own >= 0).sum())]
    # The same keys at other places of a larger table, with padding behind them.
    order = torch.randperm(keys + 9, generator=torch.Generator().manual_seed(row))
    scattered = torch.zeros(keys + 9, table.shape[1])
    scattered[order[:keys]] = table
    own = torch.nn.functional.pad(order[own], (0, padding), value=-1)
    alone = stable_attention(
        q_nope[row : row + 1], q_rope[row : row + 1], scattered, own, kv_b, SCALE
    )
    assert torch.equal(alone[0], whole[row])


def test_gradients_are_those_of_the_reference() -> None:
    places = places_of(3, 70)
    grads = []
    for function in (stable_attention, reference):
        parts = [part.requires_grad_() for part in inputs(3, 70, torch.float64)]
        q_nope, q_rope, table, kv_b = parts
        function(q_nope, q_rope, table, places, kv_b, SCALE).square().sum().backward()
        grads.append([part.grad for part in parts])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def index_inputs(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(keys)
    return (
        torch.randn(queries, 8, 16, generator=generator),
        torch.randn(keys, 16, generator=generator),
        torch.randn(queries, 8, generator=generator),
    )


@pytest.mark.parametrize(("queries", "keys", "k"), [(5, 40, 8), (20, 150, 32), (1, 65, 64)])
def test_selection_follows_the_one_rule(queries: int, keys: int, k: int) -> None:
    q, table, weight = index_inputs(queries, keys)
    found = stable_selection(q, table, weight, places_of(queries, keys), k)
    scores = index_scores.reference(q[None], table[None], weight[None])
    assert torch.equal(found, select_topk(scores, k)[0])


def test_ties_go_to_the_earlier_key() -> None:
    q, table, _ = index_inputs(3, 90)
    found = stable_selection(q, table, torch.zeros(3, 8), places_of(3, 90), 7)
    assert found.tolist() == [list(range(7))] * 3


def test_selection_of_a_query_does_not_depend_on_company_or_padding() -> None:
    q, table, weight = index_inputs(20, 150)
    places = places_of(20, 150)
    whole = stable_selection(q, table, weight, places, 32)
    for row in (0, 7, 19):
        one = slice(row, row + 1)
        padded = torch.nn.functional.pad(places[one], (0, 77), value=-1)
        assert torch.equal(stable_selection(q[one], table, weight[one], padded, 32), whole[one])


def test_everything_is_kept_where_there_are_no_more_than_k() -> None:
    q, table, weight = index_inputs(2, 30)
    places = places_of(2, 30)
    assert torch.equal(stable_selection(q, table, weight, places, 30), places)
