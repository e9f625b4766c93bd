"""Scores to probabilities and to percentiles, both monotone, so that neither changes an order.

Probabilities: isotonic regression by pooling adjacent violators (Ayer et al., 1955; Zadrozny and
Elkan, KDD 2002), on scores of documents that the classifier did not see. Percentiles: 1,001
quantiles of a reference set, so that scores of different classifiers compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUANTILES = 1000
"""Parts into which a reference set is cut."""


@dataclass(frozen=True)
class Calibration:
    """A rising curve from scores to probabilities, flat beyond its ends."""

    scores: NDArray[np.float64]
    """Ascending: where each level begins and ends."""
    probabilities: NDArray[np.float64]

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability of each score."""
        return np.interp(scores, self.scores, self.probabilities)


def pool_violators(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the rising sequence with the least weighted squared distance to `values`."""
    levels: list[list[float]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        levels.append([value, weight, 1])
        while len(levels) > 1 and levels[-2][0] >= levels[-1][0]:
            high, heavy, long = levels.pop()
            low, light, short = levels[-1]
            levels[-1] = [
                (low * light + high * heavy) / (light + heavy),
                light + heavy,
                short + long,
            ]
    return np.repeat([level[0] for level in levels], [int(level[2]) for level in levels])


def calibrate(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> Calibration:
    """Fit the curve of labels over scores; equal scores count together."""
    places, owner = np.unique(scores, return_inverse=True)
    weights = np.bincount(owner).astype(np.float64)
    means = np.bincount(owner, weights=labels.astype(np.float64)) / weights
    fitted = pool_violators(means, weights)
    # Only the ends of a level matter: between them the curve is flat.
    is_end = np.append(True, np.diff(fitted) != 0) | np.append(np.diff(fitted) != 0, True)
    return Calibration(places[is_end], fitted[is_end])


def calibration_error(
    probabilities: NDArray[np.float64], labels: NDArray[np.bool_], bins: int = 10
) -> float:
    """Return the mean distance of probability and frequency over bins of equal width, weighted."""
    owner = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.bincount(owner, weights=probabilities - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def quantiles_of(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores below which 0, 1/1000, ... of them lie.

    NaN is no score and does not count; without any score every quantile is NaN.
    """
    known = scores[~np.isnan(scores)]
    if not len(known):
        return np.full(QUANTILES + 1, np.nan)
    return np.quantile(known, np.linspace(0, 1, QUANTILES + 1))


def percentiles(scores: NDArray[np.float64], quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each score the share of the reference set below it; ties count half."""
    low = np.searchsorted(quantiles, scores, side="left")
    high = np.searchsorted(quantiles, scores, side="right")
    return np.clip((low + high - 1) / 2 / QUANTILES, 0.0, 1.0)


def percentiles_by_group(
    scores: NDArray[np.float64],
    groups: NDArray[np.int64],
    quantiles: Sequence[NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return each score's percentile by the quantiles of its group; NaN stays NaN."""
    found = np.full(len(scores), np.nan)
    for group, reference in enumerate(quantiles):
        own = (groups == group) & ~np.isnan(scores)
        found[own] = percentiles(scores[own], reference)
    return found
