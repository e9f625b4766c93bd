"""Gopher's repetition rules in the two ways in which they are published.

Thresholds are Gopher's (arXiv:2112.11446, table A1) on both sides; the counting is not:

| | DCLM | datatrove |
|---|---|---|
| a repeated line counts | each time | from the second time on |
| shares are of | characters of words (lines: of lines) | all characters of the text |
| most frequent n-gram, ties | the longest | the first |
| repeated n-grams | every word in one, once | second and later runs, jumping over each |
| n-grams are equal when | their words are | 2-4: their words; 5-10: their letters |

Surprise: in DCLM's counting a word covered by a repeated 6-gram is also covered by a repeated
5-gram, so that one pass for n = 5 clears most pages of all six rules; the same does not hold for
datatrove's.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fivefold.data.curate.config import RepetitionConfig
from fivefold.data.curate.grams import (
    Grams,
    count_repeats,
    covered_characters,
    most_frequent,
    most_that_pass,
    repeated,
    walked_characters,
)
from fivefold.data.curate.lexicon import Words

Finding = tuple[str, tuple[int, int] | None] | None
"""A reason and the span where it shows; None if the text passes."""

_Run = tuple[str, int, int]
"""A reason, the first word of a run and the number of its words."""

_MOST_WORDS_TO_SHOW = 40


def repetition_in_dclm(
    text: str, words: Words, config: RepetitionConfig, *, chinese: bool = False
) -> Finding:
    """Apply the rules in DCLM's counting; Chinese words are characters."""
    lines = [line for part in text.split("\n") if (line := part.strip())]
    paragraphs = [paragraph for part in text.split("\n\n") if (paragraph := part.strip())]
    if not lines:
        return "repetition.empty", None
    counts = [_count_all(lines), _count_all(paragraphs)]
    names = ("line", "paragraph")
    limits = (config.lines, config.paragraphs)
    for name, (share, _, example), limit in zip(names, counts, limits, strict=True):
        if share > limit:
            return f"repetition.{name}s", _locate(text, [example])
    limits = (config.line_characters, config.paragraph_characters)
    for name, (_, share, example), limit in zip(names, counts, limits, strict=True):
        if share > limit:
            return f"repetition.{name}_characters", _locate(text, [example])
    scale = config.chinese_characters_per_word if chinese else 1
    if found := _grams_in_dclm(Grams(words), config, scale):
        return _show_run(text, words, *found)
    return None


def _count_all(parts: list[str]) -> tuple[float, float, str]:
    """Return shares of the parts and of their characters that stand twice, and one of them."""
    if len(parts) == len(set(parts)):
        return 0.0, 0.0, ""
    counts = Counter(parts)
    twice = {part: count for part, count in counts.items() if count > 1}
    characters = sum(len(part) * count for part, count in twice.items())
    return (
        sum(twice.values()) / len(parts) if len(parts) > 1 else 0.0,
        characters / sum(map(len, parts)),
        max(twice, key=lambda part: twice[part] * len(part)),
    )


def _grams_in_dclm(grams: Grams, config: RepetitionConfig, scale: int) -> _Run | None:
    total, count = grams.characters, len(grams.words)
    longest = _longest_run(grams, config, scale)
    for n, limit in config.top:
        size = n * scale
        if count < size:
            break
        lengths = grams.run_lengths(size)
        found = most_frequent(grams.hashes(size), max(1, most_that_pass(longest, total, limit)))
        # Of equally frequent ones the longest counts.
        most = max((int(lengths[places[0]]) for places in found), default=0)
        if found and most * len(found[0]) / total > limit:
            return f"repetition.top_{n}gram", int(found[0][0]), size
    least = min((limit for _, limit in config.duplicate), default=1.0)
    for n, limit in config.duplicate:
        size = n * scale
        if count < size:
            break
        hashes = grams.hashes(size)
        # A word in one of them is in a run with an earlier equal one, or in the first of those.
        if 2 * count_repeats(hashes) * longest / total <= least:
            break
        places, _ = repeated(hashes)
        share = covered_characters(places, size, grams.lengths) / total
        if share > limit:
            return f"repetition.duplicate_{n}gram", int(places[0]), size
        if share <= least:
            # Longer n-grams cover no more than shorter ones, and no limit lies below this share.
            break
    return None


def _longest_run(grams: Grams, config: RepetitionConfig, scale: int) -> int:
    """Return the characters of the longest run of words that any rule looks at."""
    sizes = [n for n, _ in (*config.top, *config.duplicate)]
    words = min(len(grams.words), max(sizes, default=1) * scale)
    return int(grams.run_lengths(words).max()) if words else 0


def datatrove_lines(text: str, config: RepetitionConfig) -> Finding:
    """Apply the rules for lines and paragraphs in datatrove's counting."""
    if not text:
        return "repetition.empty", None
    paragraphs = [part for one in text.strip().split("\n\n") if (part := one.lstrip("\n"))] or [""]
    # Line ends at the edges leave an empty line each.
    lines = [line for line in text.split("\n") if line]
    lines += [""] * (text.startswith("\n") + text.endswith("\n"))
    for name, parts, most_parts, most_characters in (
        ("paragraph", paragraphs, config.paragraphs, config.paragraph_characters),
        ("line", lines, config.lines, config.line_characters),
    ):
        twice, characters, example = count_later(parts)
        if twice / len(parts) > most_parts:
            return f"repetition.{name}s", _locate(text, [example])
        if characters / len(text) > most_characters:
            return f"repetition.{name}_characters", _locate(text, [example])
    return None


def count_later(parts: Sequence[str]) -> tuple[int, int, str]:
    """Return how many parts stood before, the characters of those, and one of them."""
    unique = set(parts)
    if len(parts) == len(unique):
        return 0, 0, ""
    twice, characters = len(parts) - len(unique), sum(map(len, parts)) - sum(map(len, unique))
    return twice, characters, Counter(parts).most_common(1)[0][0]


def datatrove_grams(text: str, words: Words, config: RepetitionConfig, *, chinese: bool) -> Finding:
    """Apply the rules for n-grams in datatrove's counting; Chinese words are characters."""
    scale = config.chinese_characters_per_word if chinese else 1
    if found := _grams_in_datatrove(len(text), Grams(words), config, scale, blank=not chinese):
        return _show_run(text, words, *found)
    return None


def _grams_in_datatrove(
    total: int, grams: Grams, config: RepetitionConfig, scale: int, *, blank: bool
) -> _Run | None:
    count = len(grams.words)
    # No run that is looked at is longer.
    longest = _longest_run(grams, config, scale)
    for n, limit in config.top:
        size = n * scale
        if count < size:
            continue
        # Blanks between words count here, not below; between Chinese characters there are none.
        blanks = (size - 1) * blank
        enough = most_that_pass(longest + blanks, total, limit)
        # One run may be too long even if nothing stands twice: then the first counts.
        found = most_frequent(grams.hashes(size), max(1, enough))
        if enough > 0 and not found:
            continue
        place, most = (int(found[0][0]), len(found[0])) if found else (0, 1)
        length = int(grams.lengths[place : place + size].sum()) + blanks
        if length * most / total > limit:
            return f"repetition.top_{n}gram", place, size
    for n, limit in config.duplicate:
        size = n * scale
        if count < size:
            break
        hashes = grams.joined_hashes(size)
        # What the walk finds are later runs that do not overlap.
        if count_repeats(hashes) * longest / total <= limit:
            continue
        places, labels = repeated(hashes)
        is_later = np.ones(len(places), dtype=bool)
        is_later[np.unique(labels, return_index=True)[1]] = False
        if covered_characters(places[is_later], size, grams.lengths) / total <= limit:
            continue
        if walked_characters(places, labels, size, grams.run_lengths(size)) / total > limit:
            return f"repetition.duplicate_{n}gram", int(places[0]), size
    return None


def _show_run(text: str, words: Words, reason: str, place: int, size: int) -> Finding:
    return reason, _locate(text, words.spell(place, place + size))


def _locate(text: str, words: list[str]) -> tuple[int, int] | None:
    """Return where the words stand one after the other with nothing but marks and space between."""
    pattern = r"[\W_]{0,8}?".join(re.escape(word) for word in words[:_MOST_WORDS_TO_SHOW])
    match = re.search(pattern, text)
    return match.span() if match and match.end() > match.start() else None
