"""The small scorer: a linear head over hashed vectors of words, fitted to another scorer's marks.

Ridge regression in closed form: with X the vectors (`HashedTfidf`, an intercept beside them) and y
the marks, w = (X'X + r I)^-1 X'y, the intercept unpenalised by centring. Learned on whole parts of
documents, measured on parts of other documents: Spearman's rank correlation, and the area under the
curve for the better half.

Surprise: sums in a matrix library depend on the shapes of its blocks, so scores count to six
decimals; a document's score then depends on that document alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fivefold.artifact import atomic_write
from fivefold.data.curate.classifier import area_under_curve
from fivefold.data.long.vectors import HashedTfidf, content_words
from fivefold.errors import CorruptFileError, MissingFileError

_MIN_TEXTS = 2
"""Texts in which a word must stand to be known."""


class HeadScorer:
    """A fitted head as a `Scorer`."""

    def __init__(
        self,
        frequencies: dict[str, int],
        count: int,
        weights: NDArray[np.float32],
        intercept: float,
        limits: tuple[float, float],
    ) -> None:
        """Take document frequencies over `count` texts; marks stay within `limits`."""
        self.frequencies, self.count = frequencies, count
        self.weights, self.intercept, self.limits = weights, intercept, limits
        self._embedder = HashedTfidf(frequencies, count, len(weights))

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the marks that the head expects its teacher to give."""
        values = [self._embedder.embed([text])[0] @ self.weights for text in texts]
        marks = np.array(values, dtype=np.float64) + self.intercept
        return np.round(np.clip(marks, *self.limits), 6)


def fit_head(
    texts: Sequence[str], marks: NDArray[np.float64], dimensions: int, ridge: float
) -> HeadScorer:
    """Fit a head; independent of the order of the texts up to rounding."""
    frequencies = Counter(word for text in texts for word in set(content_words(text)))
    known = {word: n for word, n in sorted(frequencies.items()) if n >= _MIN_TEXTS}
    vectors = HashedTfidf(known, len(texts), dimensions).embed(texts).astype(np.float64)
    middle, mean = vectors.mean(axis=0), float(marks.mean())
    centred = vectors - middle
    system = centred.T @ centred + ridge * np.eye(dimensions)
    weights = np.linalg.solve(system, centred.T @ (marks - mean))
    limits = float(marks.min()), float(marks.max())
    return HeadScorer(
        known, len(texts), weights.astype(np.float32), mean - float(middle @ weights), limits
    )


def write_head(head: HeadScorer, path: Path) -> None:
    """Write a head as one file."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            words=np.array(list(head.frequencies), dtype=np.str_),
            frequencies=np.array(list(head.frequencies.values()), dtype=np.int64),
            count=head.count,
            weights=head.weights,
            intercept=head.intercept,
            limits=head.limits,
        )


def read_head(path: Path) -> HeadScorer:
    """Read what `write_head` wrote.

    Raises:
        MissingFileError: no such file.
        CorruptFileError: another kind of file.
    """
    if not path.is_file():
        raise MissingFileError(
            expected=f"the head of an earlier run at `{path}`",
            found="nothing",
            fix="Correct `scorer.head`; a run leaves one beside its accounts, `head.npz`",
        )
    try:
        with np.load(path) as file:
            words, counts = file["words"].tolist(), file["frequencies"].tolist()
            low, high = file["limits"].tolist()
            return HeadScorer(
                dict(zip(words, counts, strict=True)),
                int(file["count"]),
                file["weights"],
                float(file["intercept"]),
                (low, high),
            )
    except (ValueError, KeyError, OSError) as error:
        raise CorruptFileError(
            expected=f"a head in `{path}`", found=str(error)[:200], fix="Run its recipe again"
        ) from error


@dataclass(frozen=True)
class Agreement:
    """How well a scorer follows its teacher on documents that it did not learn from."""

    trained: int
    """Parts learned from."""
    heldout: int
    """Parts measured on."""
    spearman: float
    auc: float
    """Probability that a part of the better half scores above one of the other half."""
    failed: int = 0
    """Parts that the teacher failed on, in neither count."""

    def to_json(self) -> dict:
        """Return plain values."""
        return asdict(self)


def measure_agreement(
    marks: NDArray[np.float64], scores: NDArray[np.float64], trained: int, failed: int
) -> Agreement:
    """Compare a teacher's marks with a scorer's on held-out parts."""
    is_good = marks > np.median(marks)
    auc = area_under_curve(scores[is_good], scores[~is_good]) if is_good.any() else float("nan")
    return Agreement(trained, len(marks), round(spearman(marks, scores), 4), round(auc, 4), failed)


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the rank correlation, ties sharing their mean rank; NaN where one is constant."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float("nan")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[places].astype(np.float64)
