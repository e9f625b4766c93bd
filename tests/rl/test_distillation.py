"""On-policy distillation against enumeration of one position, and of a whole small language."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import batch_loss, gradients, make_batch, streams_of, table_of
from torch import Tensor

from fivefold.errors import MismatchError
from fivefold.rl import preset
from fivefold.rl.algorithm import make_token_loss
from fivefold.rl.config import AlgorithmConfig, DistillationConfig, DoubleSidedConfig
from fivefold.rl.distillation import return_to_go, with_teacher
from fivefold.rl.pack import pack_samples

V, T = 3, 3


def random_table(seed: int) -> Tensor:
    """Make logits of every prefix of a language of V words and T places: V^0 + V^1 + V^2 rows."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = sum(V**t for t in range(T))
    return torch.randn(prefixes, V, generator=generator, dtype=torch.float64)


def row_of(prefix: tuple[int, ...]) -> int:
    first = sum(V**t for t in range(len(prefix)))
    return first + sum(word * V**place for place, word in enumerate(prefix))


def token_logprobs(logits: Tensor, sequence: tuple[int, ...]) -> Tensor:
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[row_of(sequence[:t]), sequence[t]] for t in range(T)])


def expected_gradient(student: Tensor, teacher: Tensor, discount: float) -> Tensor:
    """Return the mean gradient of our loss over all sequences, by their probability."""
    config = AlgorithmConfig(
        advantage=None,
        distillation=DistillationConfig(discount=discount),
        loss=DoubleSidedConfig(epsilon_high=1e9, epsilon_low=1.0),
    )
    token_loss = make_token_loss(config)
    total = torch.zeros((), dtype=torch.float64)
    for sequence in itertools.product(range(V), repeat=T):
        logprobs = token_logprobs(student, sequence)
        scores = token_logprobs(teacher, sequence).tolist()
        streams = streams_of([0.0] * T, logprobs.tolist(), teacher=scores)
        probability = logprobs.sum().exp().detach()
        total = total + probability * token_loss(logprobs, streams).loss_N.sum()
    return torch.autograd.grad(total, student)[0]


def sequence_kl_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sequence in itertools.product(range(V), repeat=T):
        ours, theirs = (
            token_logprobs(student, sequence).sum(),
            token_logprobs(teacher, sequence).sum(),
        )
        total = total + ours.exp() * (ours - theirs)
    return torch.autograd.grad(total, student)[0]


def test_expected_gradient_at_one_position_is_that_of_the_reverse_kl() -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
        teacher = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
        logprobs = logits.log_softmax(-1)
        (expected,) = torch.autograd.grad(
            (logprobs.exp() * (logprobs - teacher)).sum(), logits, retain_graph=True
        )
        streams = streams_of([0.0] * 7, logprobs.tolist(), teacher=teacher.tolist())
        loss = make_token_loss(preset.distil())(logprobs, streams)
        # Each word is one outcome of the position; the seven are not a sequence for discount 0.
        (found,) = torch.autograd.grad((logprobs.exp().detach() * loss.loss_N).sum(), logits)
        torch.testing.assert_close(found, expected, atol=1e-15, rtol=1e-14)


def test_return_to_go_has_the_gradient_of_the_sequences_kl_and_token_local_has_not() -> None:
    student, teacher = random_table(0).requires_grad_(), random_table(1)
    exact = sequence_kl_gradient(student, teacher)
    torch.testing.assert_close(
        expected_gradient(student, teacher, 1.0), exact, atol=1e-15, rtol=1e-12
    )
    local = expected_gradient(student, teacher, 0.0)
    last = row_of((0, 0))
    # The last token decides nothing that follows; the first decides everything.
    torch.testing.assert_close(local[last:], exact[last:], atol=1e-15, rtol=1e-12)
    assert (local[0] - exact[0]).abs().max() > 1e-2


@given(st.integers(0, 50), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_return_to_go_equals_a_loop(seed: int, discount: float) -> None:
    samples = make_batch(6, seed)
    for packed in pack_samples(samples, 16, 2, dtype=torch.float64):
        values = packed.unpack(return_to_go(packed.streams.advantages_N, packed.streams, discount))
        for member in packed.members:
            sample = samples[member]
            assert sample.advantages is not None
            ahead, expected = 0.0, np.zeros(len(sample.ids))
            for t in reversed(np.flatnonzero(sample.loss_mask)):
                ahead = expected[t] = sample.advantages[t] + discount * ahead
            np.testing.assert_allclose(values[member], expected, rtol=1e-12, atol=1e-12)


def test_teachers_advantage_follows_the_current_student_and_joins_the_rewards() -> None:
    samples = make_batch(4)
    (packed,) = pack_samples(samples, 64, 4, dtype=torch.float64)
    streams, mask = packed.streams, packed.streams.mask_N
    assert streams.teacher_logprobs_N is not None
    config = DistillationConfig(weight=0.5)
    for shift in (-1.0, -2.0):
        student = torch.full(mask.shape, shift, dtype=torch.float64, requires_grad=True)
        filled = with_teacher(student, streams, config).advantages_N
        expected = streams.advantages_N + 0.5 * (streams.teacher_logprobs_N - shift)
        torch.testing.assert_close(filled[mask], expected[mask])
        assert not filled.requires_grad
        assert (filled[~mask] == 0).all()


def test_student_equal_to_its_teacher_learns_nothing() -> None:
    samples = make_batch(5)
    table = table_of(samples)
    same = []
    for sample, logits in zip(samples, table, strict=True):
        ids = torch.from_numpy(sample.ids)[:, None]
        logprobs = logits.detach().log_softmax(-1).gather(1, ids).squeeze(1).numpy()
        nothing = np.zeros(len(ids))
        same.append(dataclasses.replace(sample, teacher_logprobs=logprobs, advantages=nothing))
    loss, measured = batch_loss(same, table, make_token_loss(preset.distil()))
    assert all(float(g.abs().max()) < 1e-15 for g in gradients(loss, table))
    assert measured["teacher_kl_nats"] == pytest.approx(0.0, abs=1e-15)


def test_missing_teacher_is_refused() -> None:
    samples = [dataclasses.replace(s, teacher_logprobs=None) for s in make_batch(2)]
    (packed,) = pack_samples(samples, 64, 2)
    logprobs = torch.zeros_like(packed.streams.weights_N)
    with pytest.raises(MismatchError, match="Score every sample"):
        with_teacher(logprobs, packed.streams, DistillationConfig())
