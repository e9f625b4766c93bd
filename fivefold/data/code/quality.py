"""Quality of a file by rule, and the tiers that scores make.

The rule is ours: GLM-4.5 sorts code into three tiers by a quality model whose labels are not
published. Five parts of equal weight, each 0 to 1: documentation (rising to 15% of the characters,
falling above 50%), names (distinct names of three and more letters), lines within 100 characters,
lines that do not repeat, and definitions (one in 5 to 100 lines). It is a weak labeller: the
classifiers of `backoff` learn what goes with it.

Tiers are ranks within a language, so that a terse language does not end in the lowest.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fivefold.data.code.config import TierConfig
from fivefold.data.code.lexer import lex

_NAME = re.compile(r"[A-Za-z_]\w*")
_DEFINITION = re.compile(
    r"^\s*(?:export |public |private |protected |static |async |override |pub(?:\(\w+\))? )*"
    r"(?:def|class|fn|func|fun|function|interface|struct|enum|trait|impl|type|module|sub"
    r"|subroutine|[\w:<>*&]+ [\w:]+\([^;]*\)\s*\{)",
    re.MULTILINE,
)
_LINE_CHARACTERS = 100
HIGH, MID, LOW = "high", "mid", "low"


def rule_score(text: str, language: str) -> float:
    """Return the quality of a file, 0 to 1."""
    size = max(1, len(text))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    count = max(1, len(lines))
    documented = lex(text, language).comment_characters / size
    names = set(_NAME.findall(text))
    telling = sum(len(name.strip("_")) >= 3 for name in names) / max(1, len(names))
    short = sum(len(line) <= _LINE_CHARACTERS for line in lines) / count
    distinct = len(set(lines)) / count
    spacing = count / max(1, len(_DEFINITION.findall(text)))
    parts = (
        min(1.0, documented / 0.15) if documented <= 0.5 else 2 * (1 - documented),
        telling,
        short,
        distinct,
        1.0 if 5 <= spacing <= 100 else 0.5,
    )
    return sum(parts) / len(parts)


@dataclass(frozen=True)
class TierEdges:
    """Least scores of the tiers of one language."""

    mid: float
    high: float

    def tier(self, score: float) -> str:
        """Return the tier of a score."""
        return HIGH if score >= self.high else MID if score >= self.mid else LOW


def tier_edges(scores: Iterable[tuple[str, float]], config: TierConfig) -> dict[str, TierEdges]:
    """Return each language's edges from (language, score) of all files, in any order.

    Files that tie at an edge share the better tier.
    """
    by_language: defaultdict[str, list[float]] = defaultdict(list)
    for language, score in scores:
        by_language[language].append(score)
    return {name: _edges(np.sort(found), config) for name, found in sorted(by_language.items())}


def _edges(ascending: np.ndarray, config: TierConfig) -> TierEdges:
    count = len(ascending)
    if count < config.min_files:
        return TierEdges(-np.inf, np.inf)
    low, high = round(config.low_share * count), round(config.high_share * count)
    mid_edge = float(ascending[low]) if low < count else np.inf
    return TierEdges(mid_edge, float(ascending[count - high]) if high else np.inf)


def tier_epochs(config: TierConfig) -> Mapping[str, float]:
    """Return how often each tier is seen before temperature."""
    return {HIGH: config.high_epochs, MID: config.mid_epochs, LOW: config.low_epochs}
