"""Mixing sources: each row comes from the source that is furthest behind its share.

After n rows source i should have given the sum of its weights so far; the next row is taken from
the largest deficit (Megatron's blending rule), so counts stay within a row or so of the target at
any moment, not only on average. Weights are step functions of the tokens seen, for the reports
up-sample long documents and code as training goes on. The state is one number a source.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fivefold.data.config import MixtureConfig, WeightPoint
from fivefold.errors import ConfigError


def divide_shares(
    config: MixtureConfig,
    source_tokens: Mapping[str, int],
    members: Mapping[str, Mapping[str, int]],
) -> MixtureConfig:
    """Return the mixture with `shares` turned into weights of sources.

    `source_tokens` are the tokens of the corpus' sources; `members[name]` names the sources behind
    a share, with their tokens, in proportion to which they divide it.

    Raises:
        ConfigError: as for a mixture of the corpus' sources alone.
    """
    rest = 1 - sum(config.shares.values())
    weights: dict[str, list[WeightPoint]] = {name: [] for name in source_tokens}
    for start, normal in _weight_table(config, source_tokens, sorted(source_tokens)):
        for name, weight in zip(sorted(source_tokens), normal, strict=True):
            weights[name].append(WeightPoint(from_tokens=start, weight=rest * float(weight)))
    for group, share in config.shares.items():
        if not share:
            continue
        total = sum(members[group].values())
        for name, tokens in members[group].items():
            weights[name] = [WeightPoint(weight=share * tokens / total)]
    points = {name: tuple(steps) for name, steps in weights.items()}
    return MixtureConfig(weights=points, max_epochs=config.max_epochs)


class Mixture:
    """Chooses a source for each row, in one global order."""

    def __init__(
        self, config: MixtureConfig, source_tokens: Mapping[str, int], context_tokens: int
    ) -> None:
        """Mix the sources named by `source_tokens` (tokens of each), rows of `context_tokens`.

        Raises:
            ConfigError: a weight names an unknown source, or all weights are zero at some time.
        """
        assert not any(config.shares.values()), "shares are divided before rows are drawn"
        self.sources = tuple(sorted(source_tokens))
        self.credits = np.zeros(len(self.sources))
        self.rows = 0
        self._context_tokens = context_tokens
        self._changes = _weight_table(config, source_tokens, self.sources)

    def weights_at(self, tokens: int) -> np.ndarray:
        """Return the weights after this many tokens, summing to one: float64 [sources]."""
        return next(weights for start, weights in reversed(self._changes) if start <= tokens)

    def choose(self, count: int) -> np.ndarray:
        """Choose the sources of the next rows: int64 [count]."""
        chosen = np.empty(count, dtype=np.int64)
        for place in range(count):
            self.credits += self.weights_at(self.rows * self._context_tokens)
            # argmax takes the lowest index among equals, which makes ties a rule.
            chosen[place] = source = int(self.credits.argmax())
            self.credits[source] -= 1
            self.rows += 1
        return chosen


def _weight_table(
    config: MixtureConfig, source_tokens: Mapping[str, int], sources: Sequence[str]
) -> list[tuple[int, np.ndarray]]:
    """Return (from tokens, normalised weights) for every change, earliest first."""
    unknown = sorted(set(config.weights) - set(sources))
    if unknown:
        raise ConfigError(
            expected="weights for sources of this corpus",
            found=", ".join(unknown),
            fix=f"Choose among {', '.join(sources)}",
        )
    points = dict(config.weights) or {
        name: (WeightPoint(weight=float(source_tokens[name])),) for name in sources
    }
    starts = sorted({0, *(point.from_tokens for steps in points.values() for point in steps)})
    table = []
    for start in starts:
        weights = np.array([_weight_at(points.get(name, ()), start) for name in sources])
        if weights.sum() <= 0:
            raise ConfigError(
                expected=f"a source with a weight above zero from token {start:,} on",
                found="none",
                fix="Give at least one source a weight there",
            )
        table.append((start, weights / weights.sum()))
    return table


def _weight_at(steps: Sequence[WeightPoint], tokens: int) -> float:
    past = [point for point in steps if point.from_tokens <= tokens]
    return max(past, key=lambda point: point.from_tokens).weight if past else 0.0
