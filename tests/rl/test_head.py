"""A loss through the chunked head against autograd through whole logits, and with a real model."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tabular import REDUCTIONS, make_batch
from torch import Tensor

from fivefold.models.initialise import initialise
from fivefold.models.preset import preset as shape
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.rl import preset
from fivefold.rl.algorithm import make_token_loss
from fivefold.rl.config import AlgorithmConfig, ReductionConfig
from fivefold.rl.head import policy_logprobs, policy_loss
from fivefold.rl.layout import PackedSamples
from fivefold.rl.mismatch import EDGES, measure_mismatch, merge_mismatches
from fivefold.rl.pack import pack_samples
from fivefold.rl.reduction import count_totals, reduce_loss
from fivefold.rl.sample import Sample

WIDTH, WORDS = 6, 5
CHUNK = 4
ALGORITHMS = {
    "icepop": preset.icepop(),
    "agentic": preset.agentic(),
    "distil": preset.distil(),
    "dapo": preset.dapo(),
    "dr_grpo": preset.dr_grpo(9),
    "gspo": preset.gspo(),
    "cispo": preset.cispo(),
    "tis": preset.tis(),
}


def near(packed: PackedSamples, logprobs: Tensor, seed: int) -> PackedSamples:
    """Return the same with old and rollout policies near the current one, so that ratios vary."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.3 * torch.randn(2, len(logprobs), generator=generator, dtype=logprobs.dtype)
    rollout = (logprobs + noise[1]).where(packed.streams.mask_N, 0.0)
    streams = dataclasses.replace(packed.streams, rollout_logprobs_N=rollout)
    return dataclasses.replace(packed, streams=streams).with_old(logprobs + noise[0])


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_through_the_head_equals_autograd_through_logits(
    name: str, temperature: float
) -> None:
    algorithm, samples = ALGORITHMS[name], make_batch(6)
    (packed,) = pack_samples(samples, 24, 10, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(packed.ids_BT.numel(), WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    labels = packed.labels_BT.flatten()
    whole = ((hidden @ weight.T) / temperature).log_softmax(-1)
    direct = whole.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    chunked = policy_logprobs(hidden, weight, packed, chunk_tokens=CHUNK, temperature=temperature)
    torch.testing.assert_close(chunked, direct.detach().where(labels != IGNORED, 0.0))
    packed = near(packed, direct.detach(), 3)
    totals, token_loss = count_totals(samples), make_token_loss(algorithm)
    expected = reduce_loss(
        token_loss(direct, packed.streams), packed.streams, totals, algorithm.reduction
    )
    found = policy_loss(
        hidden,
        weight,
        packed,
        token_loss,
        totals,
        algorithm.reduction,
        chunk_tokens=CHUNK,
        temperature=temperature,
    )
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(found.measured, expected.measured)
    gradients = torch.autograd.grad(expected.total, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(found.total, (hidden, weight)), gradients)
    assert gradients[0].abs().max() > 1e-3


def test_broken_hidden_state_reaches_the_gradient() -> None:
    samples = make_batch(2)
    (packed,) = pack_samples(samples, 24, 10)
    hidden = torch.ones(packed.ids_BT.numel(), WIDTH)
    hidden[int(packed.streams.mask_N.nonzero()[0])] = torch.nan
    hidden.requires_grad_()
    weight = torch.ones(WORDS, WIDTH)
    for algorithm in ALGORITHMS.values():
        loss = policy_loss(
            hidden,
            weight,
            packed,
            make_token_loss(algorithm),
            count_totals(samples),
            algorithm.reduction,
            chunk_tokens=CHUNK,
        )
        (gradient,) = torch.autograd.grad(loss.total, hidden)
        assert gradient.isnan().any()


def tiny_model() -> Transformer:
    """Make a sparse mixture-of-experts model small enough for fp64."""
    config = shape("nano", num_hidden_layers=2, vocab_size=32, index_topk=4)
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    return model.double().eval()


def model_logprobs(model: Transformer, packed: PackedSamples) -> Tensor:
    around = model.surroundings(packed.positions_BT, packed.documents_BT)
    with torch.no_grad():
        hidden = model(packed.ids_BT, around=around).hidden_BTD.flatten(0, 1)
    return policy_logprobs(hidden, model.lm_head.weight, packed, chunk_tokens=CHUNK)


def model_gradient(
    model: Transformer, parts: list[PackedSamples], samples: list[Sample], config: AlgorithmConfig
) -> Tensor:
    model.zero_grad()
    for packed in parts:
        around = model.surroundings(packed.positions_BT, packed.documents_BT)
        hidden = model(packed.ids_BT, around=around).hidden_BTD.flatten(0, 1)
        policy_loss(
            hidden,
            model.lm_head.weight,
            packed,
            make_token_loss(config),
            count_totals(samples),
            config.reduction,
            chunk_tokens=CHUNK,
        ).total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_model_scores_a_sample_alone_as_among_others_and_again_bitwise() -> None:
    model, samples = tiny_model(), make_batch(5)
    (together,) = pack_samples(samples, 24, 10, dtype=torch.float64)
    assert together.documents_BT is not None
    scores = model_logprobs(model, together)
    among = together.unpack(scores)
    for number, sample in enumerate(samples):
        (alone,) = pack_samples([sample], 24, 1, dtype=torch.float64)
        np.testing.assert_allclose(
            alone.unpack(model_logprobs(model, alone))[0], among[number], atol=1e-12
        )
    streams = dataclasses.replace(together.streams, rollout_logprobs_N=scores)
    again = measure_mismatch(model_logprobs(model, together), streams)
    assert again.metrics()["rho_exact_fraction"] == 1.0
    assert again.metrics()["rho_mean"] == 1.0
    # One stands in the bin that begins with it.
    assert again.histogram[EDGES.index(0.0) + 1] == again.tokens > 0


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=[r.kind for r in REDUCTIONS])
def test_gradient_of_a_model_does_not_see_microbatches(reduction: ReductionConfig) -> None:
    model, samples = tiny_model(), make_batch(5)
    config = preset.agentic().model_copy(update={"reduction": reduction})
    (whole,) = pack_samples(samples, 24, 10, dtype=torch.float64)
    scores = whole.unpack(model_logprobs(model, whole))
    samples = [
        dataclasses.replace(s, rollout_logprobs=scores[n] + 0.01) if n else s
        for n, s in enumerate(samples)
    ]
    one = model_gradient(model, pack_samples(samples, 99, 9, dtype=torch.float64), samples, config)
    parts = pack_samples(samples, 12, 1, dtype=torch.float64)
    assert len(parts) > 2
    torch.testing.assert_close(
        model_gradient(model, parts, samples, config), one, atol=1e-13, rtol=1e-9
    )
    assert one.abs().max() > 1e-4


def test_mismatch_of_parts_merges_to_that_of_the_whole_and_equals_numpy() -> None:
    samples = make_batch(8)
    (whole,) = pack_samples(samples, 99, 9, dtype=torch.float64)
    rng = np.random.default_rng(0)
    trainer = [s.rollout_logprobs + rng.normal(0, 0.6, len(s.ids)) for s in samples]

    def scored(packed: PackedSamples) -> Tensor:
        flat = torch.full(packed.streams.mask_N.shape, torch.nan, dtype=torch.float64)
        for member, begin, length in zip(
            packed.members, packed.begins, packed.lengths, strict=True
        ):
            flat[begin : begin + length] = torch.from_numpy(trainer[member][1:])
        return flat

    parts = pack_samples(samples, 12, 1, dtype=torch.float64)
    merged = merge_mismatches([measure_mismatch(scored(p), p.streams) for p in parts])
    one = measure_mismatch(scored(whole), whole.streams)
    assert merged.metrics() == pytest.approx(one.metrics(), rel=1e-12)
    assert merged.histogram == one.histogram
    log_rho = np.concatenate(
        [(t - s.rollout_logprobs)[s.loss_mask] for t, s in zip(trainer, samples, strict=True)]
    )
    rho, metrics = np.exp(log_rho), one.metrics()
    assert metrics["rho_mean"] == pytest.approx(rho.mean())
    assert metrics["engine_kl_nats"] == pytest.approx(-log_rho.mean())
    assert metrics["engine_kl_low_variance_nats"] == pytest.approx((rho - 1 - log_rho).mean())
    assert metrics["rho_largest_log_nats"] == pytest.approx(np.abs(log_rho).max())
    assert metrics["rho_outside_fraction"] == pytest.approx(((rho < 0.5) | (rho > 2)).mean())
    assert metrics["rho_effective_fraction"] == pytest.approx(
        rho.sum() ** 2 / (rho**2).sum() / len(rho)
    )
    inner = np.histogram(np.log2(rho), bins=EDGES)[0]
    assert list(one.histogram[1:-1]) == inner.tolist()
    assert sum(one.histogram) == len(rho)


def test_token_without_a_number_is_counted_apart_and_in_no_sum() -> None:
    (packed,) = pack_samples(make_batch(4), 99, 9, dtype=torch.float64)
    trainer = packed.streams.rollout_logprobs_N + 0.1
    whole = measure_mismatch(trainer, packed.streams)
    places = packed.streams.mask_N.nonzero().flatten()[[0, 3]]
    trainer[places[0]], trainer[places[1]] = torch.nan, -torch.inf
    found = measure_mismatch(trainer, packed.streams)
    assert (found.tokens, found.nan_tokens) == (whole.tokens - 1, 1)
    assert sum(found.histogram) == found.tokens
    # No probability in the trainer is a rho of 0, and not a rho of none.
    assert (found.histogram[0], found.histogram[-1]) == (1, 0)
    assert merge_mismatches([found, whole]).nan_tokens == 1
    metrics = found.metrics()
    assert metrics["rho_nan_tokens"] == 1
    assert metrics["rho_mean"] == pytest.approx((found.tokens - 1) / found.tokens * math.exp(0.1))
    nothing = measure_mismatch(torch.full_like(trainer, torch.nan), packed.streams)
    assert nothing.metrics() == {"rho_nan_tokens": whole.tokens}


@pytest.mark.parametrize(
    ("trainer", "engine"), [(-2000.0, -1.0), (-1.0, -500.0), (-1.0, -1000.0), (-math.inf, -1.0)]
)
def test_mismatch_beyond_the_range_of_a_float_still_has_its_other_numbers(
    trainer: float, engine: float
) -> None:
    (packed,) = pack_samples(make_batch(4), 99, 9, dtype=torch.float64)
    every_N = torch.ones_like(packed.streams.rollout_logprobs_N)
    streams = dataclasses.replace(packed.streams, rollout_logprobs_N=engine * every_N)
    metrics = measure_mismatch(trainer * every_N, streams).metrics()
    assert "rho_effective_fraction" not in metrics
    assert metrics["engine_kl_nats"] == engine - trainer
    assert metrics["rho_outside_fraction"] == 1
    # As far as a float goes, equal weights are worth all their tokens.
    near = measure_mismatch((engine + 350) * every_N, streams).metrics()
    assert near["rho_effective_fraction"] == pytest.approx(1, rel=1e-9)


def test_mismatch_of_no_token_has_no_numbers() -> None:
    (packed,) = pack_samples([make_batch(1)[0]], 99, 1)
    nothing = dataclasses.replace(packed.streams, mask_N=torch.zeros_like(packed.streams.mask_N))
    assert measure_mismatch(torch.zeros_like(nothing.weights_N), nothing).metrics() == {}
