"""Isotonic regression against scipy and the definition; percentiles; the head's optimum."""

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.curate.classify_step import FAILED, score_file, write_scores
from fivefold.data.web.calibrate import (
    calibrate,
    calibration_error,
    percentiles,
    percentiles_by_group,
    pool_violators,
    quantiles_of,
)
from fivefold.data.web.config import WebConfig
from fivefold.data.web.head import train_head
from fivefold.data.web.quality import read_quality

numbers = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=30)


@given(numbers, st.randoms())
def test_pooling_is_isotonic_regression(values: list[float], random):
    weights = np.array([random.choice([1.0, 2.0, 5.0]) for _ in values])
    expected = scipy.optimize.isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(pool_violators(np.array(values), weights), expected, atol=1e-9)


def test_pooling_by_hand():
    fitted = pool_violators(np.array([1.0, 3.0, 2.0, 0.0, 7.0]), np.ones(5))
    np.testing.assert_allclose(fitted, [1, 5 / 3, 5 / 3, 5 / 3, 7])


def test_calibration_rises_and_meets_the_frequencies():
    random = np.random.default_rng(0)
    scores = random.normal(size=4000)
    true = 1 / (1 + np.exp(-3 * scores)) ** 2
    labels = random.random(4000) < true
    curve = calibrate(scores[:2000], labels[:2000])
    grid = curve(np.linspace(-5, 5, 500))
    assert (np.diff(grid) >= 0).all()
    assert 0 <= grid.min() < 0.05 < 0.95 < grid.max() <= 1
    raw = 1 / (1 + np.exp(-scores[2000:]))
    found = calibration_error(curve(scores[2000:]), labels[2000:])
    assert found < 0.03 < calibration_error(raw, labels[2000:])


@given(numbers, numbers)
def test_percentiles_rise_with_scores_and_lie_between_0_and_1(
    scores: list[float], own: list[float]
):
    found = percentiles(np.sort(own), quantiles_of(np.array(scores)))
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_percentile_is_the_share_below():
    scores = np.arange(5000.0)
    found = percentiles(scores, quantiles_of(scores))
    np.testing.assert_allclose(found, np.arange(5000) / 5000, atol=1.1e-3)
    assert percentiles(np.array([3.0]), quantiles_of(np.full(9, 3.0))) == pytest.approx(0.5)


def test_groups_have_their_own_quantiles():
    scores = np.array([1.0, 2.0, 10.0, 20.0, np.nan])
    groups = np.array([0, 0, 1, 1, 1])
    quantiles = [quantiles_of(scores[:2]), quantiles_of(scores[2:4])]
    found = percentiles_by_group(scores, groups, quantiles)
    np.testing.assert_allclose(found, [0, 1, 0, 1, np.nan])


def test_what_has_no_score_moves_no_quantile():
    scores = np.array([3.0, np.nan, 1.0, 2.0])
    np.testing.assert_array_equal(quantiles_of(scores), quantiles_of(scores[[0, 2, 3]]))
    assert np.isnan(quantiles_of(scores[1:2])).all()
    assert len(quantiles_of(scores[:0])) == len(quantiles_of(scores))


@pytest.mark.parametrize("classifier", [None, {"model": "m.bin"}])
def test_one_failed_score_changes_no_other_percentile(tmp_path: Path, classifier: dict | None):
    config = WebConfig.model_validate({"classifier": classifier})
    documents = [tmp_path / "a.jsonl.zst", tmp_path / "b.jsonl.zst"]
    rows = [(f"{n:02d}", n / 40, "") for n in range(40)]
    failed = [*rows[:7], ("07", FAILED, "ValueError: poisoned"), *rows[8:]]
    ranks = {}
    for name, some in (("whole", rows[:7] + rows[8:]), ("failed", failed)):
        write_scores(score_file(tmp_path / name, documents[0]), some[:5])
        write_scores(score_file(tmp_path / name, documents[1]), some[5:])
        quality = read_quality(documents, tmp_path / name, config)
        ranks[name] = dict(zip(quality.ids, quality.percentiles.tolist(), strict=True))
    assert np.isnan(ranks["failed"].pop("07"))
    assert ranks["failed"] == ranks["whole"]


def test_head_is_where_the_gradient_vanishes_and_scipy_ends():
    random = np.random.default_rng(1)
    x = random.normal(size=(60, 5)) * [1, 5, 1, 0.1, 1] + [0, 3, 0, 0, 7]
    labels = x @ [1, 0.2, -1, 4, 0.5] + random.normal(size=60) > 4
    head = train_head(x, labels, [3, 1, 1], 0.05)
    block = np.sqrt(x[:, :3].var(axis=0).sum())
    np.testing.assert_allclose(head.scale, [block] * 3 + x[:, 3:].std(axis=0).tolist())
    z = (x - x.mean(axis=0)) / head.scale

    def loss(w: np.ndarray) -> float:
        logits = z @ w[:-1] + w[-1]
        return np.mean(np.logaddexp(0, logits) - labels * logits) + 0.025 * (w[:-1] ** 2).sum()

    best = scipy.optimize.minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose([*head.weights, head.bias], best.x, atol=1e-4)


def test_separable_and_constant_features_do_no_harm():
    x = np.column_stack([np.arange(20.0), np.ones(20)])
    head = train_head(x, np.arange(20) >= 10, [1, 1], 0.001)
    logits = head.logits(x)
    assert np.isfinite(logits).all()
    assert ((logits > 0) == (np.arange(20) >= 10)).all()
