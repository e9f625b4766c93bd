"""Statistics of dependencies: how far back a sequence looks, and where what it needs stands.

Gaps are counted by powers of two, depths by tenths of the sequence. Named means come on top: each
is a count and a sum, so that tasks add up to the same number in the same order.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fivefold.artifact import read_json
from fivefold.errors import CorruptFileError

_DEPTHS = 10


@dataclass
class Statistics:
    """Gaps and depths of one method's sequences, in tokens."""

    sequences: int = 0
    tokens: int = 0
    dependencies: int = 0
    gap_tokens: int = 0
    """Sum of all gaps."""
    gaps: Counter[int] = field(default_factory=Counter)
    """Dependencies by their gap: key k counts those from 2^k to 2^(k+1) tokens, 0 also gap 0."""
    depths: Counter[int] = field(default_factory=Counter)
    """Dependencies by the tenth of the sequence in which the earlier place stands."""
    means: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Count and sum of whatever else is worth knowing."""

    def enter_sequence(self, tokens: int) -> None:
        """Count a sequence."""
        self.sequences += 1
        self.tokens += tokens

    def enter_dependency(self, earlier: int, later: int, tokens: int) -> None:
        """Count a dependency of token `later` on token `earlier` in a sequence of `tokens`."""
        assert 0 <= earlier <= later <= tokens, (earlier, later, tokens)
        self.dependencies += 1
        self.gap_tokens += later - earlier
        self.gaps[max(1, later - earlier).bit_length() - 1] += 1
        self.depths[min(_DEPTHS - 1, _DEPTHS * earlier // max(1, tokens))] += 1

    def enter_value(self, name: str, value: float, count: int = 1) -> None:
        """Add `count` observations that sum to `value`."""
        before = self.means.get(name, (0, 0.0))
        self.means[name] = before[0] + count, before[1] + float(value)

    def mean(self, name: str) -> float:
        """Return a mean; 0 where nothing was observed."""
        count, total = self.means.get(name, (0, 0.0))
        return total / count if count else 0.0

    def add(self, other: dict[str, Any]) -> None:
        """Add what `to_json` gave of another one."""
        for name in ("sequences", "tokens", "dependencies", "gap_tokens"):
            setattr(self, name, getattr(self, name) + other[name])
        self.gaps.update({int(key): count for key, count in other["gaps"].items()})
        self.depths.update({int(key): count for key, count in other["depths"].items()})
        for name, (count, total) in other["means"].items():
            self.enter_value(name, total, count)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "sequences": self.sequences,
            "tokens": self.tokens,
            "dependencies": self.dependencies,
            "gap_tokens": self.gap_tokens,
            "gaps": {str(key): self.gaps[key] for key in sorted(self.gaps)},
            "depths": {str(key): self.depths[key] for key in sorted(self.depths)},
            "means": {name: list(self.means[name]) for name in sorted(self.means)},
        }

    def describe(self) -> str:
        """Return one line: sequences, tokens, gaps, depths, means."""
        parts = [f"{self.sequences:,} sequences, {self.tokens / 1e6:.2f} M tokens"]
        if self.dependencies:
            mean = self.gap_tokens / self.dependencies
            widest = max(self.gaps)
            depths = " ".join(str(self.depths[tenth]) for tenth in range(_DEPTHS))
            parts.append(
                f"{self.dependencies:,} dependencies, gap {mean:,.0f} tokens on average and up to "
                f"{2 ** (widest + 1):,}, by tenth of depth {depths}"
            )
        parts += [f"{name} {self.mean(name):.3g}" for name in sorted(self.means)]
        return "; ".join(parts)


def read_statistics(folder: Path, tasks: int) -> Statistics:
    """Return the sum of what `tasks` tasks counted.

    Raises:
        CorruptFileError: a file is missing or cut.
    """
    whole = Statistics()
    for task in range(tasks):
        value = read_json(folder / f"{task:05d}.json")
        if value is None:
            raise CorruptFileError(
                expected=f"the statistics of task {task} in `{folder}`",
                found="no readable file",
                fix="Remove the folder of that stage and run again",
            )
        whole.add(value)
    return whole
