"""Chunked cross-entropy against whole logits: values, gradients, and memory."""

import pytest
import torch
from allocation import AllocationLedger
from hypothesis import given, settings
from hypothesis import strategies as st
from onednn_calls import count_onednn_calls
from torch import Tensor

from fivefold.ops.chunked_cross_entropy import (
    IGNORED,
    chunked_cross_entropy,
    chunked_loss_and_logprobs,
    reference,
    token_logprobs,
)


def make_case(
    tokens: int,
    width: int = 6,
    words: int = 11,
    *,
    ignored: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(words, width, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, words, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = IGNORED
    token_weights = torch.rand(tokens, generator=generator, dtype=torch.float64) * 2 - 0.5
    return hidden.requires_grad_(), weight.requires_grad_(), labels, token_weights


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 23),
    chunk_tokens=st.integers(1, 30),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradients_equal_the_reference(
    tokens: int, chunk_tokens: int, ignored: float, weighted: bool, seed: int
) -> None:
    hidden, weight, labels, token_weights = make_case(tokens, ignored=ignored, seed=seed)
    chosen = token_weights if weighted else None
    ours = chunked_cross_entropy(hidden, weight, labels, chosen, chunk_tokens=chunk_tokens)
    ours_gradients = torch.autograd.grad(ours * 0.7, (hidden, weight))
    theirs = reference(hidden, weight, labels, chosen)
    theirs_gradients = torch.autograd.grad(theirs * 0.7, (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours_gradients, theirs_gradients, rtol=1e-11, atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    hidden, weight, labels, token_weights = make_case(5)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_cross_entropy(hidden, weight, labels, token_weights, chunk_tokens=2)

    gradients = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    step = 1e-6
    for tensor, gradient in zip((hidden, weight), gradients, strict=True):
        flat = tensor.detach().view(-1)
        for index in range(0, flat.numel(), 7):
            value = flat[index].item()
            flat[index] = value + step
            above = loss(hidden, weight).item()
            flat[index] = value - step
            below = loss(hidden, weight).item()
            flat[index] = value
            slope = (above - below) / (2 * step)
            assert slope == pytest.approx(gradient.view(-1)[index].item(), abs=1e-7)


def test_loss_of_bf16_inputs_uses_fp32_softmax() -> None:
    hidden, weight, labels, _ = make_case(64, 16, 50, dtype=torch.bfloat16)
    ours = chunked_cross_entropy(hidden, weight, labels, chunk_tokens=8)
    gradients = torch.autograd.grad(ours, (hidden, weight))
    exact = [hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()]
    theirs = reference(exact[0], exact[1], labels)
    theirs_gradients = torch.autograd.grad(theirs, exact)
    assert ours.dtype == torch.float32
    # Logits and the gradients of logits are each rounded once to 8 bits.
    assert abs(ours - theirs) / theirs < 2**-8
    for gradient, expected in zip(gradients, theirs_gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.float() - expected).norm() / expected.norm() < 2**-7


def test_head_gradient_of_bf16_inputs_does_not_degrade_with_chunks() -> None:
    hidden, weight, labels, _ = make_case(512, 8, 16, ignored=0.0, dtype=torch.bfloat16)
    one, many = (
        torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels, chunk_tokens=n), weight)
        for n in (512, 2)
    )
    assert (one[0] - many[0]).float().norm() / one[0].float().norm() < 2**-7


@pytest.mark.parametrize("needs", ["hidden", "weight"])
def test_only_the_wanted_gradient_is_made(needs: str) -> None:
    hidden, weight, labels, _ = make_case(9)
    (weight if needs == "hidden" else hidden).requires_grad_(False)
    wanted = hidden if needs == "hidden" else weight
    loss = chunked_cross_entropy(hidden, weight, labels, chunk_tokens=4)
    expected = torch.autograd.grad(reference(hidden, weight, labels), wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, wanted), expected)


def test_ignored_rows_are_not_read() -> None:
    hidden, weight, labels, token_weights = make_case(12)
    clean = chunked_cross_entropy(hidden, weight, labels, token_weights, chunk_tokens=5)
    is_ignored = labels == IGNORED
    assert 0 < is_ignored.sum() < 12
    dirty = hidden.detach().clone()
    dirty[is_ignored] = float("nan")
    dirty.requires_grad_()
    dirty_weights = token_weights.masked_fill(is_ignored, float("nan"))
    loss = chunked_cross_entropy(dirty, weight, labels, dirty_weights, chunk_tokens=5)
    gradients = torch.autograd.grad(loss, (dirty, weight))
    assert torch.equal(loss, clean)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.equal(gradients[0][is_ignored], torch.zeros_like(dirty)[is_ignored])


def test_huge_logits_stay_finite() -> None:
    hidden, weight, labels, _ = make_case(7, dtype=torch.float32)
    loss = chunked_cross_entropy(hidden * 1e4, weight, labels, chunk_tokens=3)
    torch.testing.assert_close(loss, reference(hidden * 1e4, weight, labels))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_token_logprobs_equal_log_softmax_without_gradient() -> None:
    hidden, weight, labels, _ = make_case(17)
    logprobs = token_logprobs(hidden, weight, labels, chunk_tokens=4)
    whole = (hidden @ weight.T).log_softmax(dim=1)
    expected = whole.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    expected = expected.masked_fill(labels == IGNORED, 0.0)
    torch.testing.assert_close(logprobs, expected.detach())
    assert not logprobs.requires_grad
    _, beside_loss = chunked_loss_and_logprobs(hidden, weight, labels, chunk_tokens=4)
    assert torch.equal(beside_loss, logprobs)
    assert not beside_loss.requires_grad


def test_token_weights_carry_a_nonlinear_loss_of_logprobs() -> None:
    hidden, weight, labels, _ = make_case(13)
    leaves = (hidden, weight)

    def policy_loss(logprobs: Tensor) -> Tensor:
        return -(logprobs + 2.0).exp().clamp(max=0.5).sum()

    logprobs = token_logprobs(hidden, weight, labels, chunk_tokens=4).requires_grad_()
    (slope,) = torch.autograd.grad(policy_loss(logprobs), logprobs)
    surrogate = chunked_cross_entropy(hidden, weight, labels, -slope, chunk_tokens=4)
    whole = (hidden @ weight.T).log_softmax(dim=1)
    direct = whole.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)[labels != IGNORED]
    torch.testing.assert_close(
        torch.autograd.grad(surrogate, leaves), torch.autograd.grad(policy_loss(direct), leaves)
    )


def test_two_losses_on_one_head_add_their_gradients() -> None:
    hidden, weight, labels, _ = make_case(10)
    shifted = labels.roll(-1)
    ours = chunked_cross_entropy(hidden, weight, labels, chunk_tokens=4)
    ours = ours + 0.1 * chunked_cross_entropy(hidden, weight, shifted, chunk_tokens=4)
    theirs = reference(hidden, weight, labels) + 0.1 * reference(hidden, weight, shifted)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight))
    )


@pytest.mark.parametrize("frozen", ["nothing", "hidden", "weight"])
def test_sizes_that_onednn_multiplies_equal_float64(
    monkeypatch: pytest.MonkeyPatch, frozen: str
) -> None:
    case = make_case(200, 96, 300, ignored=0.0, dtype=torch.float32)
    hidden, weight, labels, token_weights = case
    labels[[3, 150]] = IGNORED
    exact = [hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    oracle = reference(exact[0], exact[1], labels, token_weights)
    oracle.backward()
    hidden.requires_grad_(frozen != "hidden")
    weight.requires_grad_(frozen != "weight")
    calls = count_onednn_calls(monkeypatch)
    loss = chunked_cross_entropy(hidden, weight, labels, token_weights, chunk_tokens=128)
    loss.backward()
    # Chunks of 128 rows and of 70, padded to 96: the logits and a gradient or two of each.
    assert len(calls) == 2 * (3 if frozen == "nothing" else 2)
    torch.testing.assert_close(loss.double(), oracle, rtol=1e-5, atol=0)
    for leaf, true in zip((hidden, weight), exact, strict=True):
        if leaf.requires_grad:
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad.double(), true.grad, rtol=1e-4, atol=1e-4)
        else:
            assert leaf.grad is None


def test_second_backward_is_refused() -> None:
    hidden, weight, labels, _ = make_case(4)
    loss = chunked_cross_entropy(hidden, weight, labels, chunk_tokens=2)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="runs once"):
        loss.backward()


@pytest.mark.parametrize("chunks", [1, 4, 16])
def test_memory_is_a_chunk_of_the_logits(chunks: int) -> None:
    tokens, width, words = 256, 4, 2048
    hidden, weight, labels, _ = make_case(tokens, width, words, ignored=0.0, dtype=torch.float32)
    logits_bytes = tokens * words * 4
    gradients_bytes = (hidden.numel() + weight.numel()) * 4
    with AllocationLedger() as ledger:
        chunked_cross_entropy(hidden, weight, labels, chunk_tokens=tokens // chunks).backward()
    largest = max(shape[0] for shape in ledger.shapes if shape[1:] == (words,))
    assert largest == tokens // chunks
    # The slack: indices, row sums, labels and gathered hidden rows, 20 numbers a token at most.
    assert ledger.peak_bytes < logits_bytes / chunks + 2 * gradients_bytes + tokens * 20 * 8


def test_memory_of_scoring_holds_no_gradients() -> None:
    hidden, weight, labels, _ = make_case(64, 32, 16, dtype=torch.float32)
    with AllocationLedger() as ledger:
        token_logprobs(hidden, weight, labels, chunk_tokens=8)
    assert (16, 32) not in ledger.shapes
    assert (64, 32) not in ledger.shapes
