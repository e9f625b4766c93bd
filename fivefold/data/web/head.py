"""A logistic head over vectors, in numpy: ridge-penalised, trained by Newton's method.

The objective is convex, so the result depends on documents alone, not on their order or a seed
(to rounding). Features come in blocks (the vector, the fact densities); each is centred and brought
to a total variance of 1, so that the penalty means the same whatever embeds: vectors of language
models point nearly all the same way, TF-IDF vectors do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_STEPS = 50
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Head:
    """A linear function of features."""

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: float

    def logits(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one number for each row of `features` [rows, features]."""
        return (features - self.centre) / self.scale @ self.weights + self.bias


def train_head(
    features: NDArray[np.float64],
    labels: NDArray[np.bool_],
    blocks: Sequence[int],
    penalty: float,
) -> Head:
    """Minimise mean log-loss + penalty / 2 * squared weights; `blocks` are widths that add up.

    A block wider than one feature for its vector keeps its directions' proportions; fact densities
    have scales of their own, so they come as blocks of one.
    """
    centre, scale = features.mean(axis=0), _scales(features, blocks)
    x = np.column_stack([(features - centre) / scale, np.ones(len(features))])
    y = labels.astype(np.float64)
    ridge = np.full(x.shape[1], penalty)
    # The bias is free: how many documents of each kind there are is no weakness of theirs.
    ridge[-1] = 0.0
    weights = np.zeros(x.shape[1])
    loss = _loss(x, y, weights, ridge)
    for _ in range(_MOST_STEPS):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) / len(y) + ridge * weights
        curvature = (x * (p * (1 - p) / len(y))[:, None]).T @ x + np.diag(ridge)
        # A tiny floor: where all rows are certain, the curvature of the bias vanishes.
        curvature[np.diag_indices_from(curvature)] += 1e-12
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (new := _loss(x, y, weights - size * step, ridge)) > loss and size > 1e-6:
            size /= 2
        if new > loss:
            break
        weights, gained, loss = weights - size * step, loss - new, new
        if gained < _TOLERANCE * max(1.0, abs(loss)):
            break
    return Head(centre, scale, weights[:-1], float(weights[-1]))


def _scales(features: NDArray[np.float64], blocks: Sequence[int]) -> NDArray[np.float64]:
    """Return what each feature is divided by: the square root of its block's total variance."""
    assert sum(blocks) == features.shape[1], "blocks cover the features"
    variances, scales, begin = features.var(axis=0), [], 0
    for width in blocks:
        total = float(variances[begin : begin + width].sum())
        scales += [np.sqrt(total) if total > 1e-12 else 1.0] * width
        begin += width
    return np.array(scales)


def _loss(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64],
    ridge: NDArray[np.float64],
) -> float:
    z = x @ weights
    return float(np.mean(np.logaddexp(0, z) - y * z) + 0.5 * (ridge * weights**2).sum())


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * z))
