"""One loss and gradient, however a step is packed, padded, cut into microbatches or over ranks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular import (
    FIXED,
    REDUCTIONS,
    SEQUENCE_MEAN,
    TOKEN_MEAN,
    batch_loss,
    gradients,
    make_batch,
    make_sample,
    table_of,
)
from torch import Tensor

from fivefold.rl.algorithm import make_token_loss
from fivefold.rl.config import AlgorithmConfig, DistillationConfig, GspoConfig, ReductionConfig
from fivefold.rl.reduction import Totals, count_totals, sum_over_ranks
from fivefold.rl.sample import Sample
from fivefold.rl.streams import Streams, TokenLoss

# What looks across tokens is what packing could break: a ratio a sequence, returns to the end.
ACROSS = AlgorithmConfig(
    distillation=DistillationConfig(discount=0.9), loss=GspoConfig(epsilon_low=1, epsilon_high=9)
)
WITHIN = AlgorithmConfig(distillation=DistillationConfig())
IDS = [reduction.kind for reduction in REDUCTIONS]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-15, rtol=1e-12)
    assert max(float(g.abs().max()) for g in expected) > 1e-3


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=IDS)
@settings(max_examples=25)
@given(seed=st.integers(0, 20), row_tokens=st.integers(11, 40), rows=st.integers(1, 8))
def test_packing_padding_and_microbatches_change_nothing(
    reduction: ReductionConfig, seed: int, row_tokens: int, rows: int
) -> None:
    samples = make_batch(7, seed)
    table, old = table_of(samples, seed), table_of(samples, seed + 1)
    order = np.random.default_rng(seed).permutation(len(samples))
    for algorithm in (ACROSS, WITHIN):
        token_loss = make_token_loss(algorithm)
        whole, whole_measured = batch_loss(
            samples, table, token_loss, reduction, row_tokens=99, old_table=old
        )
        cut, cut_measured = batch_loss(
            [samples[n] for n in order],
            [table[n] for n in order],
            token_loss,
            reduction,
            row_tokens=row_tokens,
            microbatch_rows=rows,
            old_table=[old[n] for n in order],
        )
        assert cut.item() == pytest.approx(whole.item(), rel=1e-12, abs=1e-15)
        assert cut_measured == pytest.approx(whole_measured, rel=1e-12, abs=1e-15)
        assert_same(gradients(cut, table), gradients(whole, table))


def test_mean_of_microbatch_means_would_be_another_gradient() -> None:
    """Guard the test above: denominators a microbatch are what it has to catch."""
    samples = make_batch(7)
    table, token_loss = table_of(samples), make_token_loss(WITHIN)
    for reduction in (SEQUENCE_MEAN, TOKEN_MEAN):
        whole = gradients(batch_loss(samples, table, token_loss, reduction)[0], table)
        halves = [slice(0, 3), slice(3, 7)]
        naive = [
            gradients(batch_loss(samples[h], table[h], token_loss, reduction)[0] / 2, table[h])
            for h in halves
        ]
        gap = max(
            float((a - b).abs().max()) for a, b in zip(naive[0] + naive[1], whole, strict=True)
        )
        assert gap > 1e-2


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=IDS)
def test_copies_count_as_if_the_sample_stood_there_so_often(reduction: ReductionConfig) -> None:
    samples = make_batch(4)
    table, token_loss = table_of(samples), make_token_loss(WITHIN)
    counted = gradients(batch_loss(samples, table, token_loss, reduction)[0], table)
    places = [n for n, sample in enumerate(samples) for _ in range(sample.copies)]
    repeated = [dataclasses.replace(samples[n], copies=1) for n in places]
    assert len(repeated) == 6
    loss, _ = batch_loss(repeated, [table[n] for n in places], token_loss, reduction)
    assert_same(gradients(loss, table), counted)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=IDS)
def test_sample_without_a_trained_token_changes_nothing(reduction: ReductionConfig) -> None:
    samples = make_batch(3)
    silent = make_sample(77, loss_mask=np.zeros(6, dtype=bool))
    table, token_loss = table_of([*samples, silent]), make_token_loss(WITHIN)
    without, _ = batch_loss(samples, table[:3], token_loss, reduction)
    beside, _ = batch_loss([*samples, silent], table, token_loss, reduction)
    assert beside.item() == without.item()
    assert count_totals([*samples, silent]) == count_totals(samples)


def test_weights_scale_the_loss_and_not_its_denominator() -> None:
    samples = [dataclasses.replace(s, weights=None) for s in make_batch(3)]
    doubled = [dataclasses.replace(s, weights=np.full(len(s.ids), 2.0)) for s in samples]
    table, token_loss = table_of(samples), make_token_loss(WITHIN)
    once, _ = batch_loss(samples, table, token_loss)
    twice, _ = batch_loss(doubled, table, token_loss)
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-14)


def test_value_at_masked_places_may_be_anything() -> None:
    samples = make_batch(4)
    table = table_of(samples)

    def dirty(logprobs: Tensor, streams: Streams) -> TokenLoss:
        poison = torch.where(streams.mask_N, 1.0, torch.nan)
        return TokenLoss(logprobs + poison, {"mark": poison})

    loss, measured = batch_loss(samples, table, dirty)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in gradients(loss, table))
    assert measured["mark"] == pytest.approx(1.0)


def test_step_of_no_sample_is_counted_as_nothing() -> None:
    assert count_totals([]) == Totals(0, 0)


def shared_parameter_batch() -> tuple[list[Sample], Tensor]:
    """Make a batch whose samples all use the same table of logits, one row a place."""
    (table,) = table_of([make_sample(0, 12)])
    return make_batch(7), table


def shared_gradient(
    samples: list[Sample], table: Tensor, reduction: ReductionConfig, totals: Totals
) -> tuple[Tensor, Tensor]:
    """Return the gradient by the shared table, and loss and entropy, of these samples."""
    algorithm = ACROSS if reduction.kind == "sequence_mean" else WITHIN
    views = [table[: len(sample.ids)] for sample in samples]
    loss, measured = batch_loss(
        samples, views, make_token_loss(algorithm), reduction, totals=totals, microbatch_rows=2
    )
    share = torch.tensor([loss.item(), measured["sampled_entropy_nats"]], dtype=torch.float64)
    return torch.autograd.grad(loss, table)[0], share


def run_rank(rank: int, world: int, folder: str) -> None:
    """Be one of two ranks, each with its part of the batch; write what all of them have."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    samples, table = shared_parameter_batch()
    mine = samples[:5] if rank == 0 else samples[5:]
    totals = sum_over_ranks(count_totals(mine))
    results = []
    for reduction in REDUCTIONS:
        parts = shared_gradient(mine, table, reduction, totals)
        for part in parts:
            dist.all_reduce(part)
        results.append(parts)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_add_up_to_one_process(tmp_path: Path) -> None:
    spawn: Callable = torch.multiprocessing.spawn
    spawn(run_rank, (2, str(tmp_path)), nprocs=2)
    samples, table = shared_parameter_batch()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for reduction, (gradient, share) in zip(REDUCTIONS, results, strict=True):
            expected = shared_gradient(samples, table, reduction, count_totals(samples))
            assert_same([gradient, share], list(expected))


def test_fixed_denominator_is_that_of_the_longest_response() -> None:
    samples = [make_sample(0, 4), make_sample(1, 8)]
    loss, _ = batch_loss(
        samples, table_of(samples), lambda lp, _: TokenLoss(torch.ones_like(lp), {}), FIXED
    )
    assert loss.item() == pytest.approx((2 + 6) / (2 * 7))
