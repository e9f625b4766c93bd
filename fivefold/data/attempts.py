"""Choosing what to learn from attempts at prompts: rejection sampling, best-of-n, difficulty.

Pure functions over a prompt and its attempts with rewards; who sampled and who judged does not
matter. GLM-5's SFT data is made so (report, section 3.1): logic by rejection sampling on verifiable
problems, mathematics and science kept where the previous model finds them hard; its reasoning RL
keeps what that model rarely solves (section 3.2).

Surprise: an attempt whose verifier failed has no reward, which is not a reward of zero. It is in no
numerator and in no denominator, and a prompt of such attempts alone is `unscored`, not hard.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from fivefold.artifact import atomic_write
from fivefold.data.conversation_config import DifficultyConfig
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

T = TypeVar("T")

UNSCORED = "too few scored attempts"
TOO_EASY = "solved too often"
TOO_HARD = "solved too rarely"


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """One answer to a prompt."""

    answer: T
    """The answer, in the caller's own form."""
    reward: float | None
    """What the verifier said; None: it could not tell (its own failure, not the answer's)."""

    def __post_init__(self) -> None:
        """Refuse a reward that compares with nothing."""
        if self.reward is not None and not math.isfinite(self.reward):
            raise ConfigError(
                expected="a finite reward, or None where the verifier failed",
                found=str(self.reward),
                fix="Correct the verifier",
            )


class PassCount(NamedTuple):
    """How often a prompt was solved: k of n; counts of several runs add up."""

    k: int
    """Attempts that passed."""
    n: int
    """Attempts that were scored."""

    def plus(self, other: "PassCount") -> "PassCount":
        """Return the count of both runs together."""
        return PassCount(self.k + other.k, self.n + other.n)


class Filtered(NamedTuple):
    """Prompts after a difficulty filter."""

    kept: list[str]
    """Keys of the prompts that stay, in the order given."""
    dropped: dict[str, str]
    """Reason of each that does not."""

    @property
    def reasons(self) -> Counter[str]:
        """Dropped prompts by reason."""
        return Counter(self.dropped.values())


def count_passes(attempts: Iterable[Attempt], threshold: float = 1.0) -> PassCount:
    """Count the attempts with a reward of at least `threshold` among the scored ones."""
    rewards = [attempt.reward for attempt in attempts if attempt.reward is not None]
    return PassCount(sum(reward >= threshold for reward in rewards), len(rewards))


def accept_passing(
    attempts: Iterable[Attempt[T]],
    threshold: float = 1.0,
    *,
    identity: Callable[[T], Hashable] | None = None,
) -> list[Attempt[T]]:
    """Return the attempts that pass, in the order given (rejection sampling).

    `identity` names what makes two answers the same: the first of them stays.
    """
    accepted: list[Attempt[T]] = []
    seen: set[Hashable] = set()
    for attempt in attempts:
        if attempt.reward is None or attempt.reward < threshold:
            continue
        if identity is not None:
            key = identity(attempt.answer)
            if key in seen:
                continue
            seen.add(key)
        accepted.append(attempt)
    return accepted


def best_of(attempts: Iterable[Attempt[T]]) -> Attempt[T] | None:
    """Return the best rewarded attempt, the earlier among equals.

    None where no attempt was scored.
    """
    scored = [attempt for attempt in attempts if attempt.reward is not None]
    return max(scored, key=lambda attempt: attempt.reward or 0.0, default=None)


def filter_by_difficulty(counts: Mapping[str, PassCount], config: DifficultyConfig) -> Filtered:
    """Keep the prompts whose solve rate lies in the window; `counts` are by the prompt's key."""
    # Exact: 0.3 as written is three tenths, so that 3 of 10 lies on the edge and stays.
    lowest, highest = Fraction(str(config.lowest)), Fraction(str(config.highest))
    kept: list[str] = []
    dropped: dict[str, str] = {}
    for key, (k, n) in counts.items():
        if n < config.least_scored:
            dropped[key] = UNSCORED
        elif Fraction(k, n) < lowest or (config.needs_pass and k == 0):
            dropped[key] = TOO_HARD
        elif Fraction(k, n) > highest or (config.needs_miss and k == n):
            dropped[key] = TOO_EASY
        else:
            kept.append(key)
    return Filtered(kept, dropped)


def write_pass_counts(path: Path, counts: Mapping[str, PassCount]) -> None:
    """Write `{"key", "k", "n"}` as JSON lines, whole or not at all."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        for key, (k, n) in counts.items():
            file.write(json.dumps({"key": key, "k": k, "n": n}, ensure_ascii=False) + "\n")


def read_pass_counts(path: Path) -> dict[str, PassCount]:
    """Read pass counts; a key that stands twice was counted in two runs, which add up.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: a line that is no count, with its number.
    """
    if not path.is_file():
        raise MissingFileError(
            expected=f"pass counts at `{path}`",
            found="no such file",
            fix="Sample and verify attempts first, and write their counts",
        )
    counts: dict[str, PassCount] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        entry = _read_count(line)
        if entry is None:
            raise CorruptFileError(
                expected=f'{{"key", "k", "n"}} with 0 <= k <= n in line {number} of `{path}`',
                found=line.decode(errors="replace")[:100],
                fix="Correct that line, or count anew",
            )
        key, count = entry
        counts[key] = counts.get(key, PassCount(0, 0)).plus(count)
    return counts


def _read_count(line: bytes) -> tuple[str, PassCount] | None:
    try:
        entry = json.loads(line)
        key, k, n = entry["key"], entry["k"], entry["n"]
    except (ValueError, LookupError, TypeError):
        return None
    is_count = isinstance(key, str) and type(k) is type(n) is int and 0 <= k <= n
    return (key, PassCount(k, n)) if is_count else None
