"""A threshold whose false positives are bounded: how many people's texts are flagged, how surely.

Of n texts that people wrote, k score above a threshold; Clopper and Pearson's upper bound (1934) is
the rate p at which at most k of n would be seen with probability 1 - confidence: the solution of
P(Binomial(n, p) <= k) = 1 - confidence. The threshold is the lowest one whose bound is within the
rate that was asked for. With none flagged the bound is 1 - (1 - confidence)^(1/n), so that 1% at
95% needs 299 texts.

The bound holds for texts that are drawn independently of each other and like those that will be
judged; pieces of one book are neither, which is why it should be checked by source.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fivefold.errors import ConfigError


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to the texts that it was found on."""

    threshold: float
    """A text is flagged when it scores above this."""
    texts: int
    flagged: int
    bound: float
    """Upper bound of the false-positive rate."""


def calibrate(
    scores: NDArray[np.float64],
    false_positives: float,
    confidence: float,
    floor: float = -math.inf,
) -> Calibration:
    """Return the lowest threshold, from `floor` on, whose bound is within `false_positives`.

    Raises:
        ConfigError: too few texts for such a bound, whatever the threshold.
    """
    count = len(scores)
    if upper_bound(0, count, confidence) > false_positives:
        needed = math.ceil(math.log(1 - confidence) / math.log(1 - false_positives))
        raise ConfigError(
            expected=f"{needed:,} pieces of human text, to bound {false_positives:.2%} of false "
            f"positives with {confidence:.0%} confidence",
            found=f"{count:,}",
            fix="Give more with `machine_text.human`, shorten `machine_text.window_characters`, or "
            "raise `machine_text.false_positives`",
        )
    allowed = max(
        k
        for k in range(min(count, math.ceil(false_positives * count) + 1))
        if upper_bound(k, count, confidence) <= false_positives
    )
    threshold = max(floor, float(np.sort(scores)[count - allowed - 1]))
    flagged = int((scores > threshold).sum())
    return Calibration(threshold, count, flagged, upper_bound(flagged, count, confidence))


def upper_bound(flagged: int, count: int, confidence: float) -> float:
    """Return Clopper and Pearson's one-sided upper bound of a rate."""
    if flagged >= count:
        return 1.0
    low, high = flagged / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if binomial_at_most(flagged, count, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def binomial_at_most(most: int, count: int, rate: float) -> float:
    """Return the probability of at most `most` hits in `count` draws."""
    if rate in (0.0, 1.0):
        return float(rate == 0 or most >= count)
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    ways = math.lgamma(count + 1)
    return math.fsum(
        math.exp(
            ways
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * log_rate
            + (count - k) * log_rest
        )
        for k in range(most + 1)
    )
