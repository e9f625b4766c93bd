"""What attention costs: the FLOP model in closed form, and the block that shows it."""

import pytest

from fivefold.models.preset import preset
from fivefold.train.cost_curve import Cost, cost_block, measure_costs, predicted_flops

TINY = preset("nano", index_topk=8)
HEADS, LATENT, ROPE = 4, 32, 8


def test_prediction_counts_projections_pairs_and_the_scan() -> None:
    # Of 16 keys at most 8 are kept: 1 + 2 + ... + 8 + 8 x 8 of a row's 136 pairs.
    projections = 128 * 64 + 64 * HEADS * 32 + 128 * 40 + 32 * HEADS * (24 + 32) + HEADS * 32 * 128
    pairs = (36 + 64) / 16 * HEADS * (2 * LATENT + ROPE)
    index = 64 * 128 + 128 * 16 + 128 * 8 + 136 / 16 * 8 * (16 + 1)
    found = predicted_flops(TINY, 16, sparse=True)
    assert found == pytest.approx(3 * 2 * (projections + pairs) + 2 * index)


def test_row_that_keeps_everything_costs_what_the_dense_one_does() -> None:
    assert predicted_flops(TINY, 8, sparse=True) == predicted_flops(TINY, 8, sparse=False)
    assert predicted_flops(TINY, 9, sparse=True) != predicted_flops(TINY, 9, sparse=False)


def test_measured_costs_are_of_the_lengths_asked_for() -> None:
    costs = measure_costs(TINY, (8, 64))
    assert [cost.context_tokens for cost in costs] == [8, 64]
    assert all(cost.dense_seconds > 0 and cost.sparse_seconds > 0 for cost in costs)


def test_block_meets_the_dense_measurement_at_the_longest_context() -> None:
    block = cost_block(TINY, [Cost(64, 1e-3, 2e-3), Cost(128, 4e-3, 3e-3)])
    series = {line["name"]: line["y"] for line in block["series"]}
    assert series["dense"] == pytest.approx([1e-3 / 64 * 1e6, 4e-3 / 128 * 1e6])
    assert series["sparse"] == pytest.approx([2e-3 / 64 * 1e6, 3e-3 / 128 * 1e6])
    assert series["dense, FLOP model"][1] == pytest.approx(series["dense"][1])
    ratio = predicted_flops(TINY, 64, sparse=True) / predicted_flops(TINY, 128, sparse=False)
    assert series["sparse, FLOP model"][0] == pytest.approx(series["dense"][1] * ratio)
