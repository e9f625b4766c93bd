"""Mixing sources: each row comes from the source that is furthest behind its share.

After n rows a source should have given the sum of its weights so far; the next row is taken from
the largest deficit (Megatron's blending rule), so counts stay within a row or so of the target at
any moment, not only on average. Weights are functions of the tokens seen, for the reports
up-sample long documents and code as training goes on.

The law, row by row. Open sources are those that have given fewer rows than their cap, the whole
rows in `max_epochs` passes. Each open source's credit grows by its weight over the weights of all
open ones; the open source of largest credit and positive weight, the first by name among equals,
gives the row and pays 1. So what a source at its cap would have given goes to the others in
proportion to their weights. The state is two numbers a source.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fivefold.data.config import LONG, PLANTED, MixtureConfig, WeightPoint
from fivefold.data.document import Document
from fivefold.errors import ConfigError

TIER_MARK = "@"
"""Stands between source and tier in the name of what is mixed."""
_NO_CAP = np.iinfo(np.int64).max
_ROUNDING = 1e-9


def mixed_name(document: Document) -> str:
    """Return what a document is mixed as: its source, and the tier that curation gave it."""
    tier = document.meta.get("tier")
    known = isinstance(tier, str) and re.fullmatch(r"[A-Za-z0-9_-]+", tier)
    return f"{document.source}{TIER_MARK}{tier}" if known else document.source


def epochs_of(document: Document) -> float:
    """Return how often curation wants a document to be seen; once where it does not say."""
    epochs = document.meta.get("epochs")
    return float(epochs) if isinstance(epochs, int | float) and epochs >= 0 else 1.0


def keys_of(name: str) -> tuple[str, ...]:
    """Return the keys of a mixture that fit `SOURCE` or `SOURCE@TIER`, the most precise first."""
    source, mark, tier = name.partition(TIER_MARK)
    return (name, source, mark + tier) if mark else (name,)


class Mixture:
    """Chooses a source for each row, in one global order."""

    def __init__(
        self,
        config: MixtureConfig,
        source_tokens: Mapping[str, float],
        context_tokens: int,
        *,
        pass_rows: Mapping[str, int] | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        """Mix the sources named by `source_tokens` (tokens of each), rows of `context_tokens`.

        `pass_rows` are the rows of one pass over each source, which caps count in; `groups` says
        which sources stand behind the shares of `long` and `planted`.

        Raises:
            ConfigError: a key fits no source, or all weights are zero at some time.
        """
        self.sources = tuple(sorted(source_tokens))
        self.credits = np.zeros(len(self.sources))
        self.given = np.zeros(len(self.sources), dtype=np.int64)
        self._context_tokens = context_tokens
        self._is_linear = config.between == "lines"
        groups = groups or {}
        self._limits = _limits(config, self.sources, pass_rows or {}, groups)
        self._starts, self._table = _weight_table(config, source_tokens, self.sources, groups)

    @property
    def rows(self) -> int:
        """Rows chosen so far."""
        return int(self.given.sum())

    def weights_at(self, tokens: int) -> np.ndarray:
        """Return the weights after this many tokens, caps aside: float64 [sources], sum 1."""
        place = int(np.searchsorted(self._starts, tokens, side="right")) - 1
        if not self._is_linear or place == len(self._starts) - 1:
            return self._table[place]
        begin, end = self._starts[place : place + 2]
        part = (tokens - begin) / (end - begin)
        return (1 - part) * self._table[place] + part * self._table[place + 1]

    def choose(self, count: int) -> np.ndarray:
        """Choose the sources of the next rows: int64 [count].

        Raises:
            ConfigError: every source with a weight has reached its cap.
        """
        chosen = np.empty(count, dtype=np.int64)
        rows = self.rows
        for place in range(count):
            weights = self.weights_at((rows + place) * self._context_tokens)
            weights = np.where(self.given < self._limits, weights, 0.0)
            total = weights.sum()
            if total <= 0:
                raise self._exhausted(rows + place)
            self.credits += weights / total
            # argmax takes the lowest index among equals, which makes ties a rule.
            source = int(np.where(weights > 0, self.credits, -np.inf).argmax())
            self.credits[source] -= 1
            self.given[source] += 1
            chosen[place] = source
        return chosen

    def _exhausted(self, rows: int) -> ConfigError:
        return ConfigError(
            expected=f"rows beyond {rows * self._context_tokens:,} tokens within the epoch caps of "
            "the mixture",
            found="all sources with a weight at their caps: "
            + ", ".join(
                f"{name} after {given:,} rows"
                for name, given in zip(self.sources, self.given, strict=True)
                if given
            ),
            fix="Train on fewer tokens, add text, or raise `max_epochs` or `epoch_caps`",
        )


def _limits(
    config: MixtureConfig,
    sources: Sequence[str],
    pass_rows: Mapping[str, int],
    groups: Mapping[str, str],
) -> np.ndarray:
    """Return the rows that each source may give: int64 [sources]."""
    named = [(groups[name],) if name in groups else keys_of(name) for name in sources]
    known = [LONG, PLANTED, *(key for keys in named for key in keys)]
    _refuse_unknown(config.epoch_caps, known, "epoch_caps")
    limits = []
    for name, keys in zip(sources, named, strict=True):
        epochs = next((config.epoch_caps[k] for k in keys if k in config.epoch_caps), None)
        epochs = config.max_epochs if epochs is None else epochs
        if epochs is None:
            limits.append(_NO_CAP)
        else:
            limits.append(int(epochs * pass_rows[name] + _ROUNDING))
    return np.array(limits, dtype=np.int64)


def _weight_table(
    config: MixtureConfig,
    source_tokens: Mapping[str, float],
    sources: Sequence[str],
    groups: Mapping[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """Return where weights change, int64 [points], and what they are there [points, sources].

    A row of the table sums to one; between its rows straight lines are exact, or steps.
    """
    owners = {name: _owner(name, config) for name in sources if name not in groups}
    _refuse_unknown(config.weights, (k for name in owners for k in keys_of(name)), "weights")
    owned: dict[str, float] = {}
    for name, key in owners.items():
        owned[key] = owned.get(key, 0.0) + source_tokens[name]
    grouped: dict[str, float] = {}
    for name, group in groups.items():
        grouped[group] = grouped.get(group, 0.0) + source_tokens[name]
    points = config.weights or {key: (WeightPoint(weight=owned[key]),) for key in owned}
    starts = sorted({0, *(point.from_tokens for steps in points.values() for point in steps)})
    table = np.zeros((len(starts), len(sources)))
    rest = 1 - sum(config.shares.values())
    for row, start in enumerate(starts):
        for place, name in enumerate(sources):
            key = owners.get(name)
            if key in points and owned[key] > 0:
                weight = _weight_at(points[key], start, config.between == "lines")
                table[row, place] = weight * source_tokens[name] / owned[key]
        total = table[row].sum()
        if total <= 0:
            raise ConfigError(
                expected=f"a source with a weight above zero from token {start:,} on",
                found="none",
                fix="Give at least one source a weight there",
            )
        table[row] *= rest / total
        for place, name in enumerate(sources):
            if name in groups:
                share = config.shares.get(groups[name], 0.0)
                table[row, place] = share * source_tokens[name] / grouped[groups[name]]
    return np.array(starts, dtype=np.int64), table


def _owner(name: str, config: MixtureConfig) -> str:
    """Return the key whose weight a source takes part in; its own name if there are none."""
    return next((key for key in keys_of(name) if key in config.weights), name)


def _refuse_unknown(keys: Iterable[str], known: Iterable[str], field: str) -> None:
    known = sorted(set(known))
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise ConfigError(
            expected=f"`{field}` for what this corpus holds",
            found=", ".join(unknown),
            fix=f"Choose among {', '.join(known)}",
        )


def _weight_at(steps: Sequence[WeightPoint], tokens: int, is_linear: bool) -> float:
    ordered = sorted(steps, key=lambda point: point.from_tokens)
    if is_linear:
        places = [point.from_tokens for point in ordered]
        return float(np.interp(tokens, places, [point.weight for point in ordered]))
    past = [point for point in ordered if point.from_tokens <= tokens]
    return past[-1].weight if past else 0.0
