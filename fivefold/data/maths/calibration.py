"""A threshold whose false positives are bounded: how many people's texts are flagged, how surely.

Of n texts that people wrote, k score above a threshold; Clopper and Pearson's upper bound (1934) is
the rate p at which at most k of n would be seen with probability 1 - confidence: the solution of
P(Binomial(n, p) <= k) = 1 - confidence. With none flagged the bound is
1 - (1 - confidence)^(1/n), so that 1% at 95% needs 299 texts.

The threshold is the lowest one whose bound is within the rate that was asked for over all texts and
over those of each source: over all alone, a small source of another kind hardly counts, and most of
it may be flagged. Of a source with too few texts for a bound of its own none may be flagged; its
bound is told, and is above what was asked for.

Each bound holds by itself, not all at once, and for texts that are drawn independently of each
other and like those of the source; of a kind of text that is in no source it says nothing.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fivefold.errors import ConfigError


@dataclass(frozen=True)
class Rate:
    """What a threshold does to some texts of people."""

    texts: int
    flagged: int
    bound: float
    """Upper bound of the false-positive rate; 1 where there are no texts."""

    def __str__(self) -> str:
        return f"{self.flagged:,} of {self.texts:,} (at most {100 * self.bound:.2f}%)"


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to the texts that it was found on."""

    threshold: float
    """A text is flagged when it scores above this."""
    pooled: Rate
    sources: dict[str, Rate]
    needed: int
    """Texts from which on a source can have a bound within what was asked for."""

    def small_sources(self) -> list[str]:
        """Return the sources with too few texts for such a bound."""
        return [name for name, rate in self.sources.items() if rate.texts < self.needed]


def calibration_from_json(facts: Mapping[str, Any]) -> Calibration:
    """Return what `dataclasses.asdict` made of a calibration."""
    sources = {name: Rate(**rate) for name, rate in facts["sources"].items()}
    return Calibration(facts["threshold"], Rate(**facts["pooled"]), sources, facts["needed"])


def calibrate(
    scores: Mapping[str, NDArray[np.float64]],
    false_positives: float,
    confidence: float,
    floor: float = -math.inf,
) -> Calibration:
    """Return the lowest threshold, from `floor` on, whose bounds are within `false_positives`.

    `scores` are those of human texts by source.

    Raises:
        ConfigError: too few texts in all for such a bound, whatever the threshold.
    """
    pooled = np.concatenate([np.zeros(0), *scores.values()])
    needed = math.ceil(math.log(1 - confidence) / math.log(1 - false_positives))
    if len(pooled) < needed:
        raise ConfigError(
            expected=f"{needed:,} pieces of human text, to bound {false_positives:.2%} of false "
            f"positives with {confidence:.0%} confidence",
            found=f"{len(pooled):,}",
            fix="Give more with `machine_text.human`, shorten `machine_text.window_characters`, or "
            "raise `machine_text.false_positives`",
        )
    parts = [part for part in (pooled, *scores.values()) if len(part)]
    threshold = max(floor, *(_lowest(part, false_positives, confidence) for part in parts))
    return Calibration(
        threshold,
        _rate(pooled, threshold, confidence),
        {name: _rate(part, threshold, confidence) for name, part in scores.items()},
        needed,
    )


def _lowest(scores: NDArray[np.float64], false_positives: float, confidence: float) -> float:
    """Return the lowest score whose bound as a threshold is within the rate; else the highest."""
    count = len(scores)
    tried = range(min(count, math.ceil(false_positives * count) + 1))
    # The bound of k is within the rate when, at that rate, at most k are seen that seldom.
    able = bisect_right(
        tried, 1 - confidence, key=lambda k: binomial_at_most(k, count, false_positives)
    )
    return float(np.sort(scores)[count - max(able, 1)])


def _rate(scores: NDArray[np.float64], threshold: float, confidence: float) -> Rate:
    flagged = int((scores > threshold).sum())
    return Rate(len(scores), flagged, upper_bound(flagged, len(scores), confidence))


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
