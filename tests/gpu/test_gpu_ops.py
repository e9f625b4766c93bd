"""Every op on a GPU against its reference in fp64 on a CPU, forward and backward.

Sizes pass the sizes of blocks, so that several blocks run. Tolerances are distances relative to the
length of a result: fp32 products leave some 1e-6, bf16 operands some 1e-2.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fivefold.ops import (
    attention,
    batch_invariant,
    chunked_cross_entropy,
    experts,
    index_loss,
    index_scores,
    masked_attention,
    newton_schulz,
    product,
    rms_norm,
    rotary,
    select_topk,
    sparse_attention,
    sparse_index,
    stable_attention,
    workspace,
)

pytestmark = [pytest.mark.gpu, pytest.mark.numerics]

B, H, N, R, C, V = 2, 4, 24, 8, 32, 32
SCALE = (N + R) ** -0.5
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)]
)
Function = Callable[..., Any]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def distance(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.double().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def run(function: Function, leaves: list[Tensor], rest: tuple[Any, ...]) -> list[Tensor]:
    """Return a function's result and the gradients of a random projection of it."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    result = function(*leaves, *rest)
    result = result.total if isinstance(result, index_loss.IndexLoss) else result
    pull = gaussian(*result.shape, seed=7).to(result)
    return [result.detach(), *torch.autograd.grad(result, leaves, pull)]


def compare(
    fast: Function,
    reference: Function,
    tensors: list[Tensor],
    *rest: Any,
    dtype: torch.dtype,
    tolerance: float,
    of_reference: tuple[Any, ...] | None = None,
) -> None:
    """Compare on what `dtype` makes of the tensors; `of_reference` takes the place of `rest`."""
    narrow = [tensor.to("cuda", dtype) for tensor in tensors]
    there = tuple(x.cuda() if isinstance(x, Tensor) else x for x in rest)
    found = run(fast, narrow, there)
    exact = [tensor.to("cpu", torch.float64) for tensor in narrow]
    wanted = run(reference, exact, rest if of_reference is None else of_reference)
    for one, other in zip(found, wanted, strict=True):
        assert one.is_cuda
        assert distance(one, other) < tolerance


def attention_parts(queries: int, keys: int) -> list[Tensor]:
    """Return q_nope, q_rope, latent, rope, kv_b."""
    shapes = ((B, queries, H, N), (B, queries, H, R), (B, keys, C), (B, keys, R), (H, N + V, C))
    return [gaussian(*shape) for shape in shapes]


def packed(keys: int) -> Tensor:
    """Return two documents a row, the second row with padding behind them."""
    documents = torch.zeros(B, keys, dtype=torch.int64)
    documents[0, keys // 3 :] = 1
    documents[1, keys // 2 :], documents[1, keys - 9 :] = 1, -1
    return documents


def visible(documents: Tensor) -> Tensor:
    return (documents[:, :, None] == documents[:, None]).tril()


def some_keys(tokens: int, k: int) -> Tensor:
    """Select up to `k` causal keys of each query, ascending, padded with -1; one has none."""
    scores = gaussian(B, tokens, tokens, seed=3).masked_fill(
        torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf
    )
    chosen = select_topk.mask_to_indices(select_topk.reference(scores, k), k).int()
    chosen[1, 5] = -1
    return chosen


@DTYPES
@pytest.mark.parametrize("linear", [product.linear, batch_invariant.linear])
def test_linear(linear: Function, dtype: torch.dtype, tolerance: float) -> None:
    tensors = [gaussian(3, 67, 96), gaussian(40, 96), gaussian(40)]
    compare(linear, product.reference, tensors, dtype=dtype, tolerance=tolerance)


@DTYPES
def test_rms_norm(dtype: torch.dtype, tolerance: float) -> None:
    tensors = [gaussian(3, 50, 96), gaussian(96)]
    pair = rms_norm.rms_norm, rms_norm.reference
    compare(*pair, tensors, 1e-6, dtype=dtype, tolerance=tolerance)


@DTYPES
@pytest.mark.parametrize("rotate", [rotary.rotate_pairs, rotary.rotate_halves])
def test_rotation(rotate: Function, dtype: torch.dtype, tolerance: float) -> None:
    speeds, factor = rotary.inverse_frequencies({"rope_theta": 10_000.0}, R)
    positions = torch.arange(300).expand(B, -1)
    turn = rotary.rotary_angles(positions, speeds, factor)
    on_device = rotary.rotary_angles(positions.cuda(), speeds.cuda(), factor)
    torch.testing.assert_close(on_device.cpu(), turn, rtol=1e-4, atol=1e-4)
    pair = rotate, rotate
    compare(*pair, [gaussian(B, 300, H, R)], turn, dtype=dtype, tolerance=tolerance)


@DTYPES
@pytest.mark.parametrize("form", ["causal", "masked", "documents"])
def test_attention_in_both_forms(form: str, dtype: torch.dtype, tolerance: float) -> None:
    tokens = 300
    documents = packed(tokens)
    mask = None if form == "causal" else visible(documents)
    parts = attention_parts(tokens, tokens)
    numbers = {"dtype": dtype, "tolerance": tolerance}
    if form == "documents":
        segments = [(0, 0, 100), (0, 100, 300), (1, 0, 150), (1, 150, 291), (1, 291, 300)]

        def by_document(*tensors: Tensor) -> Tensor:
            return attention.attend_documents(*tensors, segments=segments, scale=SCALE)

        def whole(*tensors: Tensor) -> Tensor:
            return attention.attend_absorbed(*tensors, visible_BTS=mask, scale=SCALE)

        compare(by_document, whole, parts, **numbers)
        return
    for fast in (attention.attend_expanded, attention.attend_absorbed):
        compare(fast, attention.attend_absorbed, parts, mask, SCALE, **numbers)


@DTYPES
def test_masked_attention(dtype: torch.dtype, tolerance: float) -> None:
    tensors = [gaussian(B, H, 300, width) for width in (N + R, N + R, V)]
    pair = masked_attention.masked_attention, masked_attention.reference
    compare(*pair, tensors, visible(packed(300)), SCALE, dtype=dtype, tolerance=tolerance)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 200])
def test_experts(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    chosen = gaussian(tokens, 8).argsort(-1)[:, :3].clamp_max(6).sort(-1).values
    chosen = torch.stack([row.unique(sorted=True)[:2] for row in chosen])
    weight = gaussian(tokens, 2).abs()
    tensors = [gaussian(tokens, 48), weight, gaussian(8, 64, 48) / 7, gaussian(8, 48, 32) / 6]

    def fast(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor) -> Tensor:
        return experts.run_experts(x, chosen, weight, gate_up, down)

    def slow(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor) -> Tensor:
        return experts.reference(x, chosen, weight, gate_up, down)

    compare(fast, slow, tensors, chosen, dtype=dtype, tolerance=tolerance)


@DTYPES
def test_chunked_cross_entropy(dtype: torch.dtype, tolerance: float) -> None:
    labels = torch.randint(0, 500, (330,), generator=torch.Generator().manual_seed(0))
    labels[::5] = chunked_cross_entropy.IGNORED
    weights = gaussian(330).abs()

    def fast(hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return chunked_cross_entropy.chunked_cross_entropy(
            hidden, head, labels, weights, chunk_tokens=100
        )

    pair = fast, chunked_cross_entropy.reference
    tensors = [gaussian(330, 64), gaussian(500, 64)]
    compare(*pair, tensors, labels, weights, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("numbers", [4000, 2**27])
@pytest.mark.parametrize("is_packed", [False, True])
def test_index_scores_and_selection(
    is_packed: bool, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_DEVICE_NUMBERS", numbers)
    tokens, k = 300, 32
    exact = [gaussian(B, tokens, 8, 16), gaussian(B, tokens, 16), gaussian(B, tokens, 8)]
    q, key, weight = (tensor.float().double() for tensor in exact)
    here = q.float().cuda(), key.float().cuda(), weight.float().cuda()
    documents = packed(tokens) if is_packed else None
    there = None if documents is None else documents.cuda()
    wanted = index_scores.reference(q, key, weight)
    found = index_scores.index_scores(*here).cpu()
    is_seen = wanted > -torch.inf
    assert torch.equal(found > -torch.inf, is_seen)
    assert distance(found[is_seen], wanted[is_seen]) < 2e-6
    places = sparse_index.sparse_index(*here, k, there).cpu()
    assert torch.equal(places, sparse_index.reference(q, key, weight, k, documents))


@pytest.mark.parametrize("k", [1, 7, 63, 64, 100])
def test_selection_breaks_ties_towards_lower_indices(k: int) -> None:
    scores = gaussian(5, 9, 64).mul(2).round().float()
    scores[2, 3, 10:] = -torch.inf
    on_device = scores.cuda()
    wanted = select_topk.reference(scores, k)
    assert torch.equal(select_topk.selection_mask(on_device, k).cpu(), wanted)
    indices = select_topk.mask_to_indices(wanted, k)
    assert torch.equal(select_topk.select_topk(on_device, k).cpu(), indices)
    best = scores.flatten(0, 1).sort(-1).values[:, -min(k, 64) :]
    found = select_topk.largest(on_device.flatten(0, 1), min(k, 64))
    assert torch.equal(found.cpu(), best)


@DTYPES
@pytest.mark.parametrize("numbers", [4000, 2**27])
def test_sparse_attention(
    numbers: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_DEVICE_NUMBERS", numbers)
    tokens = 150
    pair = sparse_attention.attend_gathered, sparse_attention.reference
    parts, chosen = attention_parts(tokens, tokens), some_keys(tokens, 20)
    compare(*pair, parts, chosen, SCALE, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("numbers", [4000, 2**27])
@pytest.mark.parametrize("form", ["dense", "selected"])
def test_index_loss(form: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_DEVICE_NUMBERS", numbers)
    tokens = 150
    tensors = [gaussian(B, tokens, 8, 16), gaussian(B, tokens, 16), gaussian(B, tokens, 8)]
    q, k = gaussian(B, tokens, H, N + R), gaussian(B, tokens, H, N + R)
    exact = {"dtype": torch.float32, "tolerance": 2e-5}
    if form == "dense":
        documents = packed(tokens)
        own = documents[:, :, None]
        seen = visible(documents) & (own >= 0)
        whole = q, k, SCALE, seen
        there = q.float(), k.float(), SCALE, documents
        pair = index_loss.dense_index_loss, index_loss.reference
        compare(*pair, tensors, *there, of_reference=whole, **exact)
        return
    chosen = some_keys(tokens, 20)
    seen = torch.zeros(B, tokens, tokens + 1, dtype=torch.bool)
    seen = seen.scatter(-1, chosen.long().where(chosen >= 0, tokens), True)[..., :tokens]
    scores = torch.einsum("bthq,bshq->bhts", q, k) * SCALE
    p = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num().mean(1)
    shares = p.gather(-1, chosen.long().clamp_min(0)).where(chosen >= 0, 0.0)
    pair = index_loss.selected_index_loss, index_loss.reference
    compare(*pair, tensors, chosen, shares, of_reference=(q, k, SCALE, seen), **exact)


@pytest.mark.parametrize("name", sorted(newton_schulz.COEFFICIENTS))
@pytest.mark.parametrize("shape", [(3, 48, 80), (2, 80, 48)])
def test_newton_schulz(name: str, shape: tuple[int, int, int]) -> None:
    blocks = gaussian(*shape)
    coefficients = newton_schulz.COEFFICIENTS[name]
    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for a, b, c in coefficients:
        values = a * values + b * values**3 + c * values**5
    wanted = left @ torch.diag_embed(values) @ right
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        found = newton_schulz.orthogonalise(blocks.float().cuda(), coefficients, dtype)
        assert distance(found, wanted) < tolerance


@pytest.mark.parametrize("keys", [70, 200])
def test_stable_attention(keys: int) -> None:
    queries = 9
    seen = keys - queries + 1 + torch.arange(queries)
    places = torch.arange(keys).where(torch.arange(keys) < seen[:, None], -1)
    tensors = [gaussian(queries, H, N), gaussian(queries, H, R), gaussian(keys, C + R)]
    kv_b = gaussian(H, N + V, C)

    def fast(q: Tensor, rope: Tensor, table: Tensor, kv_b: Tensor, places: Tensor) -> Tensor:
        return stable_attention.stable_attention(q, rope, table, places, kv_b, SCALE)

    def slow(q: Tensor, rope: Tensor, table: Tensor, kv_b: Tensor, places: Tensor) -> Tensor:
        return stable_attention.reference(q, rope, table, places, kv_b, SCALE)

    exact = {"dtype": torch.float32, "tolerance": 2e-5}
    compare(fast, slow, [*tensors, kv_b], places, **exact)


def test_batch_invariant_product_gives_a_row_the_same_bits_in_any_company() -> None:
    x, weight = gaussian(100, 96).float().cuda(), gaussian(40, 96).float().cuda()
    whole = batch_invariant.linear(x, weight)
    for begin, end in ((0, 1), (3, 4), (17, 40), (99, 100)):
        assert torch.equal(batch_invariant.linear(x[begin:end], weight), whole[begin:end])
