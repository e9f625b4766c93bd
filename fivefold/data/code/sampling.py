"""How often a file is seen: its tier's epochs times what its language's temperature gives.

A language of n characters (weighted by its tiers) gets the share n^t / sum n^t of the mixture, not
below a floor. Languages are scaled so that the mixture has as many characters as before; a language
that would be seen more than `max_epochs` times is held there, and what it cannot take goes to the
others in proportion. A file seen 2.3 times is seen twice, and a third time if the hash of its id
falls into the lowest 0.3: the draw depends on the file alone.

Surprise: the cap holds for each file too, so that the best files of a rare language do not reach
tier times temperature, and the mixture comes out a little smaller.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import xxhash

from fivefold.data.code.config import SamplingConfig


def language_weights(sizes: Mapping[str, float], config: SamplingConfig) -> dict[str, float]:
    """Return each language's epochs, for languages of these sizes (tiers' epochs included)."""
    present = {name: size for name, size in sorted(sizes.items()) if size > 0}
    total = sum(present.values())
    powers = {name: (size / total) ** config.temperature for name, size in present.items()}
    shares = _with_floor(powers, min(config.min_share, 1 / max(1, len(present))))
    weights = {name: shares[name] * total / size for name, size in present.items()}
    return _with_cap(weights, present, config.max_epochs)


def _with_cap(
    weights: Mapping[str, float], sizes: Mapping[str, float], cap: float
) -> dict[str, float]:
    """Return weights of at most `cap`, of the same sum of weight times size where that can be."""
    total = sum(weights[name] * sizes[name] for name in weights)
    capped: set[str] = set()
    while True:
        rest = total - cap * sum(sizes[name] for name in capped)
        whole = sum(weights[name] * sizes[name] for name in weights if name not in capped)
        scaled = {name: cap if name in capped else weights[name] * rest / whole for name in weights}
        above = {name for name, weight in scaled.items() if weight > cap * (1 + 1e-9)} - capped
        if not above:
            return scaled
        capped |= above


def _with_floor(weights: Mapping[str, float], floor: float) -> dict[str, float]:
    """Return shares of 1 in proportion to the weights, none below the floor."""
    raised: set[str] = set()
    while True:
        rest = 1 - floor * len(raised)
        whole = sum(weight for name, weight in weights.items() if name not in raised)
        shares = {
            name: floor if name in raised else rest * weight / whole
            for name, weight in weights.items()
        }
        # Equal languages stand at the floor itself: rounding must not raise the last of them.
        below = {name for name, share in shares.items() if share < floor * (1 - 1e-9)} - raised
        if not below:
            return shares
        raised |= below


def copies(document_id: str, epochs: float, config: SamplingConfig) -> int:
    """Return how many times a file is seen, on average `epochs` but never above the cap."""
    epochs = min(epochs, config.max_epochs)
    draw = xxhash.xxh3_64_intdigest(document_id.encode(), seed=config.seed) / 2**64
    whole = int(epochs)
    return whole + (draw < epochs - whole)


def tiered_sizes(
    files: Iterable[tuple[str, str, int]], epochs: Mapping[str, float]
) -> dict[str, float]:
    """Return each language's characters from (language, tier, characters), tiers weighted."""
    sizes: defaultdict[str, float] = defaultdict(float)
    for language, tier, characters in files:
        sizes[language] += epochs[tier] * characters
    return dict(sizes)
