"""Every loss against its closed-form gradient, its quadrants and the edges of its window.

The policy is a table of logits, so that d log p(word) / d logits = onehot - softmax exactly.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tabular import (
    SEQUENCE_MEAN,
    TOKEN_MEAN,
    WORDS,
    batch_loss,
    gradients,
    make_batch,
    make_sample,
    streams_of,
    table_of,
)
from torch import Tensor

from fivefold.rl.advantage import assign_advantages
from fivefold.rl.algorithm import choose_loss, make_token_loss
from fivefold.rl.config import (
    AdvantageConfig,
    AlgorithmConfig,
    CispoConfig,
    DoubleSidedConfig,
    GspoConfig,
    IcePopConfig,
    LossConfig,
    PpoClipConfig,
    TisConfig,
)
from fivefold.rl.double_sided import double_sided_loss
from fivefold.rl.icepop import icepop_loss, pop
from fivefold.rl.sample import Group, Sample
from fivefold.rl.streams import Streams, TokenLoss
from fivefold.rl.surrogate import clipped_surrogate

LOSSES: list[LossConfig] = [
    IcePopConfig(),
    DoubleSidedConfig(),
    PpoClipConfig(),
    TisConfig(),
    GspoConfig(),
    CispoConfig(),
]
KINDS = [config.kind for config in LOSSES]


def score_times(samples: list[Sample], table: list[Tensor], coefficients: list) -> list[Tensor]:
    """Return sum over tokens of coefficient x (onehot - softmax), the closed-form gradient."""
    result = []
    for sample, logits, coefficient in zip(samples, table, coefficients, strict=True):
        onehot = torch.eye(WORDS, dtype=torch.float64)[torch.from_numpy(sample.ids)]
        score = onehot - logits.detach().softmax(-1)
        result.append(
            torch.from_numpy(np.where(sample.loss_mask, coefficient, 0.0))[:, None] * score
        )
    return result


def logprobs_of(sample: Sample, logits: Tensor) -> np.ndarray:
    ids = torch.from_numpy(sample.ids)[:, None]
    return logits.detach().log_softmax(-1).gather(1, ids).squeeze(1).numpy()


def sequence_factor(samples: list[Sample], sample: Sample) -> np.ndarray:
    assert sample.weights is not None
    count = sum(s.copies for s in samples)
    return sample.copies * sample.weights / sample.loss_tokens / count


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-15) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))
    assert max(float(b.abs().max()) for b in expected) > 1e-3


def test_icepop_gradient_on_policy_is_its_closed_form() -> None:
    samples = make_batch(9)
    table = table_of(samples)
    loss, measured = batch_loss(samples, table, choose_loss(IcePopConfig()))
    coefficients, masked = [], []
    for sample, logits in zip(samples, table, strict=True):
        rho = np.exp(logprobs_of(sample, logits) - sample.rollout_logprobs)
        inside = (rho >= 0.5) & (rho <= 2.0)
        masked += [~inside[sample.loss_mask]] * sample.copies
        popped = np.where(inside, rho, 0.0)
        coefficients.append(-sequence_factor(samples, sample) * popped * sample.advantages)
    assert_near(gradients(loss, table), score_times(samples, table, coefficients))
    assert 0 < measured["masked_fraction"] < 1
    assert measured["masked_fraction"] == pytest.approx(np.concatenate(masked).mean())


def test_icepop_gradient_after_a_step_keeps_rho_constant() -> None:
    samples = make_batch(9)
    table, old = table_of(samples, 1), table_of(samples, 2)
    # Near enough to the old policy that some tokens are clipped and others not.
    table = [(o + 0.15 * t).detach().requires_grad_() for o, t in zip(old, table, strict=True)]
    loss, _ = batch_loss(samples, table, choose_loss(IcePopConfig()), old_table=old)
    coefficients, clipped = [], 0
    for sample, logits, before in zip(samples, table, old, strict=True):
        old_logprobs = logprobs_of(sample, before)
        rho = np.exp(old_logprobs - sample.rollout_logprobs)
        ratio = np.exp(logprobs_of(sample, logits) - old_logprobs)
        assert sample.advantages is not None
        dead = (ratio > 1.28) & (sample.advantages > 0) | (ratio < 0.8) & (sample.advantages < 0)
        clipped += int(dead[sample.loss_mask].sum())
        weight = np.where((rho >= 0.5) & (rho <= 2), rho, 0.0) * np.where(dead, 0.0, ratio)
        coefficients.append(-sequence_factor(samples, sample) * weight * sample.advantages)
    assert clipped > 0
    assert_near(gradients(loss, table), score_times(samples, table, coefficients))


def test_double_sided_gradient_equals_icepop_on_policy() -> None:
    for seed in range(5):
        samples = make_batch(8, seed)
        table = table_of(samples, seed)
        for beta in (1.3, 2.0, 4.0):
            window = DoubleSidedConfig(epsilon_low=1 - 1 / beta, epsilon_high=beta - 1)
            double, _ = batch_loss(samples, table, choose_loss(window))
            single, _ = batch_loss(samples, table, choose_loss(IcePopConfig(beta=beta)))
            assert_near(gradients(double, table), gradients(single, table), 1e-14)


def surrogate_form(logprobs: Tensor, streams: Streams, *, keeps_graph: bool) -> TokenLoss:
    """Return -keep r A, or what the double-sided loss would be with f differentiated too."""
    ratio = (logprobs - streams.rollout_logprobs_N).where(streams.mask_N, 0.0).exp()
    kept = ratio.masked_fill((ratio <= 0.5) | (ratio >= 2.0), 0.0)
    if keeps_graph:
        return TokenLoss(-kept * streams.advantages_N * logprobs, {})
    return TokenLoss(-kept * streams.advantages_N, {})


def test_factor_of_double_sided_is_a_constant_of_the_gradient() -> None:
    samples = make_batch(8)
    table = table_of(samples)
    ours = gradients(batch_loss(samples, table, choose_loss(DoubleSidedConfig()))[0], table)
    surrogate, _ = batch_loss(
        samples, table, lambda lp, streams: surrogate_form(lp, streams, keeps_graph=False)
    )
    assert_near(ours, gradients(surrogate, table))
    wrong, _ = batch_loss(
        samples, table, lambda lp, streams: surrogate_form(lp, streams, keeps_graph=True)
    )
    gap = max(
        float((a - b).abs().max()) for a, b in zip(gradients(wrong, table), ours, strict=True)
    )
    # Without the stop-gradient the test above would fail by far more than its tolerance.
    assert gap > 1e-2


@pytest.mark.parametrize("config", LOSSES, ids=KINDS)
def test_on_policy_without_mismatch_every_loss_is_reinforce(config: LossConfig) -> None:
    samples, table = make_batch(7), table_of(make_batch(7))
    exact, factors = [], []
    count = sum(sample.copies for sample in samples)
    for sample, logits in zip(samples, table, strict=True):
        advantages = np.where(sample.loss_mask, float(sample.ids.sum()) / 10 - 1, 0.0)
        rollout = logprobs_of(sample, logits)
        exact.append(
            dataclasses.replace(
                sample, rollout_logprobs=rollout, advantages=advantages, weights=None
            )
        )
        factors.append(-sample.copies / sample.loss_tokens / count * advantages)
    loss, measured = batch_loss(exact, table, choose_loss(config))
    assert_near(gradients(loss, table), score_times(exact, table, factors))
    assert all(value == 0 for value in measured.values()), measured


QUADRANTS = [
    # advantage, log ratio, does the gradient live under PPO, IcePop (as PPO), double-sided, CISPO
    (1.0, 1.0, False, False, True),
    (1.0, -1.0, True, False, True),
    (-1.0, 1.0, True, False, True),
    (-1.0, -1.0, False, False, True),
    (1.0, 0.1, True, True, True),
    (1.0, -0.1, True, True, True),
    (-1.0, 0.1, True, True, True),
    (-1.0, -0.1, True, True, True),
]


@pytest.mark.parametrize(("advantage", "log_ratio", "ppo", "double", "cispo"), QUADRANTS)
def test_quadrants(
    advantage: float, log_ratio: float, ppo: bool, double: bool, cispo: bool
) -> None:
    # The engine and the old policy agree: all ratios are the same number.
    streams = streams_of([advantage], [-2.0], [-2.0])
    lives = {
        "ppo_clip": ppo,
        "icepop": ppo,
        "tis": ppo,
        "gspo": advantage * log_ratio < 0,
        "double_sided": double,
        "cispo": cispo,
    }
    for config in LOSSES:
        logprobs = torch.tensor([-2.0 + log_ratio], dtype=torch.float64, requires_grad=True)
        loss = choose_loss(config)(logprobs, streams)
        (gradient,) = torch.autograd.grad(loss.loss_N.sum(), logprobs)
        expected = -advantage * math.exp(log_ratio) if lives[config.kind] else 0.0
        assert gradient.item() == pytest.approx(expected, abs=1e-15), config.kind
        stopped = ("clip_low_fraction", "clip_high_fraction", "masked_fraction")
        marked = any(bool(loss.marks[name].any()) for name in stopped if name in loss.marks)
        assert marked == (not lives[config.kind]), config.kind


def test_dual_clip_bounds_what_a_bad_token_can_do() -> None:
    ratio = torch.tensor([4.0, 4.0, 2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    loss = clipped_surrogate(ratio, advantages, 0.2, 0.2, 3.0)
    assert loss.loss_N.tolist() == [3.0, -1.2, 2.0]
    (gradient,) = torch.autograd.grad(loss.loss_N.sum(), ratio)
    assert gradient.tolist() == [0.0, 0.0, 1.0]
    assert loss.marks["dual_clip_fraction"].tolist() == [True, False, False]


def test_window_keeps_its_edges_in_icepop_and_drops_them_in_double_sided() -> None:
    rho = torch.tensor([0.5, 2.0, 0.49999999, 2.00000001, 1.0], dtype=torch.float64)
    assert pop(rho, 2.0).tolist() == [0.5, 2.0, 0.0, 0.0, 1.0]
    # log-probabilities whose difference is exactly ln 2 or its negative
    below, above = -1.0, -1.0 + math.log(2)
    assert math.exp(above - below) == 2.0
    for engine, trainer, edge in ((below, above, 2.0), (above, below, 0.5)):
        streams = streams_of([1.0], [engine])
        for config, expected in ((IcePopConfig(), edge), (DoubleSidedConfig(), 0.0)):
            logprobs = torch.tensor([trainer], dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(
                choose_loss(config)(logprobs, streams).loss_N.sum(), logprobs
            )
            assert gradient.item() == pytest.approx(-expected, abs=1e-15)


def test_truncated_weight_is_bounded_and_keeps_its_gradient() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    streams = streams_of([1.0, 1.0, 1.0], [-3.0, -1.5, -0.1])
    loss = choose_loss(TisConfig(weight_low=0.8))(logprobs, streams)
    (gradient,) = torch.autograd.grad(loss.loss_N.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([-2.0, -math.exp(0.5), -0.8])
    assert loss.marks["weight_high_fraction"].tolist() == [True, False, False]
    assert loss.marks["weight_low_fraction"].tolist() == [False, False, True]


def test_gspo_gradient_equals_that_of_the_sequence_form() -> None:
    generator = torch.Generator().manual_seed(0)
    for advantage, shift in ((1.0, 1e-4), (-2.0, 1e-4), (1.0, 1e-2), (-1.0, -1e-2), (-1.0, 1e-2)):
        old = -torch.rand(6, generator=generator, dtype=torch.float64)
        streams = streams_of([advantage] * 6, old=old.tolist())
        logprobs = (old + shift).requires_grad_()
        ours = choose_loss(GspoConfig())(logprobs, streams).loss_N.mean()
        ratio = (logprobs - old).mean().exp()
        clipped = ratio.clamp(1 - 3e-4, 1 + 4e-4)
        theirs = -torch.minimum(ratio * advantage, clipped * advantage)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-14)
        torch.testing.assert_close(
            torch.autograd.grad(ours, logprobs), torch.autograd.grad(theirs, logprobs)
        )


@pytest.mark.parametrize("config", LOSSES, ids=KINDS)
def test_group_without_variance_has_exactly_no_gradient(config: LossConfig) -> None:
    rewards = [1 / 3] * 3
    group = Group("g", tuple(make_sample(n, reward=r) for n, r in enumerate(rewards)), 3)
    other = Group("h", tuple(make_sample(n + 9, group="h", reward=n) for n in (0, 1)), 2)
    algorithm = AlgorithmConfig(advantage=AdvantageConfig(zero_variance="zero"), loss=config)
    samples = assign_advantages([group, other], algorithm).samples
    table = table_of(samples)
    loss, _ = batch_loss(samples, table, make_token_loss(algorithm))
    by_sample = gradients(loss, table)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in by_sample[:3])
    assert all(bool(g.any()) for g in by_sample[3:])


def test_dropped_group_leaves_the_denominator_and_zeroed_group_stays_in_it() -> None:
    silent = Group("g", tuple(make_sample(n, reward=1.0) for n in range(2)), 2)
    other = Group("h", tuple(make_sample(n + 9, group="h", reward=n) for n in (0, 1)), 2)
    norms = {}
    for policy in ("drop", "zero"):
        advantage = AdvantageConfig(zero_variance=policy)  # pyright: ignore[reportArgumentType]
        algorithm = AlgorithmConfig(advantage=advantage, loss=DoubleSidedConfig())
        samples = assign_advantages([silent, other], algorithm).samples
        table = table_of([s for s in samples if s.group == "h"])
        padding = table_of([s for s in samples if s.group == "g"], 5)
        loss, _ = batch_loss(samples, padding + table, make_token_loss(algorithm), TOKEN_MEAN)
        norms[policy] = math.sqrt(sum(float(g.square().sum()) for g in gradients(loss, table)))
    assert norms["drop"] == pytest.approx(2 * norms["zero"])


@pytest.mark.parametrize("config", LOSSES, ids=KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("old", [None, [-1.0, -1.0]], ids=["first update", "later update"])
def test_broken_log_probability_of_the_trainer_is_never_silent(
    config: LossConfig, value: float, old: list[float] | None
) -> None:
    logprobs = torch.tensor([-1.0, value], dtype=torch.float64, requires_grad=True)
    loss = choose_loss(config)(logprobs, streams_of([1.0, -1.0], [-1.0, -1.0], old))
    total = loss.loss_N.sum()
    (gradient,) = torch.autograd.grad(total, logprobs)
    # What the learner looks at before it takes an update.
    if math.isfinite(total.item()) and math.isfinite(gradient.norm().item()):
        # A ratio to recorded log-probabilities is then 0, and so is the token's part.
        assert (value, old) == (-math.inf, [-1.0, -1.0])
        assert config.kind in {"icepop", "ppo_clip", "tis"}
        assert gradient.tolist() == [-1.0, 0.0]


def test_marks_shared_by_all_losses_tell_entropy_drift_and_rho() -> None:
    old = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    new = torch.tensor([-1.1, -1.5, -0.5], dtype=torch.float64)
    streams = streams_of([1.0, 1.0, 1.0], [-1.0, -2.5, -0.5], old.tolist())
    marks = make_token_loss(AlgorithmConfig())(new, streams).marks
    assert marks["sampled_entropy_nats"].tolist() == pytest.approx((-new).tolist())
    assert marks["rho_mean"].tolist() == pytest.approx([1.0, math.exp(0.5), 1.0])
    drift = (new - old).tolist()
    expected = [math.exp(d) - 1 - d for d in drift]
    assert marks["policy_kl_nats"].tolist() == pytest.approx(expected)


def test_icepop_and_double_sided_are_unbiased_where_nothing_is_masked() -> None:
    """Enumerate: the mean under the engine of our gradient is that of the mean of -A."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(WORDS, generator=generator, dtype=torch.float64).requires_grad_()
    engine = (logits.detach() + 0.2 * torch.randn(WORDS, generator=generator)).log_softmax(-1)
    advantages = torch.randn(WORDS, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    ratio = (logprobs.detach() - engine).exp()
    assert ratio.min() > 0.5
    assert ratio.max() < 2.0
    (expected,) = torch.autograd.grad(
        -(logprobs.exp() * advantages).sum(), logits, retain_graph=True
    )
    streams = streams_of(advantages.tolist(), engine.tolist())
    for loss in (
        icepop_loss(logprobs, streams, IcePopConfig()),
        double_sided_loss(logprobs, streams, DoubleSidedConfig()),
    ):
        mean = (engine.exp() * loss.loss_N).sum()
        (found,) = torch.autograd.grad(mean, logits, retain_graph=True)
        torch.testing.assert_close(found, expected, atol=1e-15, rtol=1e-14)


def test_reduction_of_a_hand_made_batch() -> None:
    samples = [make_sample(0, 4), make_sample(1, 6, copies=2)]
    table = table_of(samples)
    for reduction, factors in (
        (SEQUENCE_MEAN, [1 / 2 / 3, 2 / 4 / 3]),
        (TOKEN_MEAN, [1 / 10, 2 / 10]),
    ):
        loss, measured = batch_loss(
            samples,
            table,
            lambda lp, streams: TokenLoss(torch.ones_like(lp), {"one": torch.ones_like(lp)}),
            reduction,
        )
        assert loss.item() == pytest.approx(factors[0] * 2 + factors[1] * 4)
        assert measured["one"] == pytest.approx(1.0)
