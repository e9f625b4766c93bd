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

from fivefold.data.curate.config import RepetitionConfig
from fivefold.data.curate.grams import (
    Grams,
    covered_characters,
    most_frequent,
    repeated,
    walked_characters,
)

Finding = tuple[str, tuple[int, int] | None] | None
"""A reason and the span where it shows; None if the text passes."""

_PARAGRAPH_ENDS = re.compile(r"\n{2,}")
_LINE_ENDS = re.compile(r"\n+")
_MOST_WORDS_TO_SHOW = 40


def repetition_in_dclm(
    text: str, words: list[str], config: RepetitionConfig, *, chinese: bool = False
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
    return _grams_in_dclm(text, Grams(words), config, scale)


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


def _grams_in_dclm(text: str, grams: Grams, config: RepetitionConfig, scale: int) -> Finding:
    total, count = grams.characters, len(grams.words)
    for n, limit in config.top:
        size = n * scale
        if count < size:
            break
        most, places = most_frequent(grams.hashes(size))
        if most == 1:
            continue
        characters = int(grams.run_lengths(size)[places].max()) * most
        if characters / total > limit:
            return f"repetition.top_{n}gram", _locate_run(text, grams, int(places[0]), size)
    least = min((limit for _, limit in config.duplicate), default=1.0)
    for n, limit in config.duplicate:
        size = n * scale
        if count < size:
            break
        places, _ = repeated(grams.hashes(size))
        share = covered_characters(places, size, grams.lengths) / total
        if share > limit:
            return f"repetition.duplicate_{n}gram", _locate_run(text, grams, int(places[0]), size)
        if share <= least:
            # Longer n-grams cover no more than shorter ones, and no limit lies below this share.
            break
    return None


def datatrove_lines(text: str, config: RepetitionConfig) -> Finding:
    """Apply the rules for lines and paragraphs in datatrove's counting."""
    if not text:
        return "repetition.empty", None
    paragraphs = _PARAGRAPH_ENDS.split(text.strip())
    lines = _LINE_ENDS.split(text)
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


def datatrove_grams(
    text: str, words: list[str], config: RepetitionConfig, *, chinese: bool
) -> Finding:
    """Apply the rules for n-grams in datatrove's counting; Chinese words are characters."""
    grams, total, count = Grams(words), len(text), len(words)
    scale = config.chinese_characters_per_word if chinese else 1
    for n, limit in config.top:
        size = n * scale
        if count < size:
            continue
        most, places = most_frequent(grams.hashes(size))
        place = int(places[0])
        # Blanks between words count here, not below; between Chinese characters there are none.
        blanks = 0 if chinese else size - 1
        length = int(grams.lengths[place : place + size].sum()) + blanks
        if length * most / total > limit:
            return f"repetition.top_{n}gram", _locate_run(text, grams, place, size)
    for n, limit in config.duplicate:
        size = n * scale
        places, labels = repeated(grams.joined_hashes(size))
        if not len(places):
            continue
        lengths = grams.run_lengths(size)
        # All later runs together bound what the walk can find.
        if int(lengths[places].sum()) / total <= limit:
            continue
        if walked_characters(places, labels, size, lengths) / total > limit:
            return f"repetition.duplicate_{n}gram", _locate_run(text, grams, int(places[0]), size)
    return None


def _locate_run(text: str, grams: Grams, place: int, size: int) -> tuple[int, int] | None:
    return _locate(text, grams.words[place : place + size])


def _locate(text: str, words: list[str]) -> tuple[int, int] | None:
    """Return where the words stand one after the other with nothing but marks and space between."""
    pattern = r"[\W_]{0,8}?".join(re.escape(word) for word in words[:_MOST_WORDS_TO_SHOW])
    match = re.search(pattern, text)
    return match.span() if match and match.end() > match.start() else None
