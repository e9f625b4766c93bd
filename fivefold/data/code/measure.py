"""What the rules look at: counts of one file's text.

`measure` makes one pass of C code for each count. Definitions: a line is what stands between
newlines, the last empty one not counted; lines that are white space count only where said; letters
and digits are Unicode's. Encoded data are runs of base64 of 64 characters and more, of eight bytes
in hexadecimal, and of eight escapes, as StarCoder2 (arXiv:2402.19173, section 3.3) describes them.
"""

import re
from collections import Counter
from dataclasses import dataclass

_BASE64 = re.compile(r"[A-Za-z0-9+/\n=]{64,}")
_HEX_BYTES = re.compile(r"(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}")
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4}){8,}")
_HEX_WORD = re.compile(r"\b(?=[0-9a-fA-F]*\d)(?:0x)?[0-9a-fA-F]{8,}\b")
_ASSERT = re.compile(r"^[ \t]*(?:self\.|\w+\.)?assert\w*\b", re.MULTILINE | re.IGNORECASE)
_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_NOT_LETTER = re.compile(r"[\W\d_]+")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class Measures:
    """Counts of one text."""

    characters: int
    lines: int
    full_lines: int
    """Lines that are not white space."""
    longest_line: int
    longest_place: int
    """Character at which the longest line begins."""
    mean_line: float
    """Mean characters of the full lines."""
    spaces: int
    letters: int
    digits: int
    repeated_lines: int
    """Full lines, stripped, that stood before."""
    hex_word_characters: int
    encoded_characters: int
    longest_encoded: tuple[int, int]
    """Where the longest run of encoded data stands."""
    asserts: int

    @property
    def dark(self) -> int:
        """Characters that are not white space."""
        return self.characters - self.spaces


def measure(text: str) -> Measures:
    """Count a text."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    full = [line for line in lines if line.strip()]
    longest = max(lines, key=len, default="")
    runs = encoded_runs(text)
    return Measures(
        characters=len(text),
        lines=len(lines),
        full_lines=len(full),
        longest_line=len(longest),
        longest_place=text.find(longest),
        mean_line=sum(map(len, full)) / len(full) if full else 0.0,
        spaces=sum(map(len, _SPACE.findall(text))),
        letters=len(_NOT_LETTER.sub("", text)),
        digits=len(_DIGIT.findall(text)),
        repeated_lines=len(full) - len(Counter(map(str.strip, full))),
        hex_word_characters=sum(len(word) for word in _HEX_WORD.findall(text)),
        encoded_characters=sum(end - begin for begin, end in runs),
        longest_encoded=max(runs, key=lambda run: run[1] - run[0], default=(0, 0)),
        asserts=len(_ASSERT.findall(text)),
    )


def encoded_runs(text: str) -> list[tuple[int, int]]:
    """Return the runs of encoded data, ascending, overlapping ones joined.

    A run of base64 must hold digits and letters of both cases on each of its lines on average, so
    that a long word, a rule of `=` or a line of identifiers is none; this condition is ours.
    """
    found = [match.span() for match in _BASE64.finditer(text) if _looks_encoded(match.group())]
    found += [match.span() for one in (_HEX_BYTES, _ESCAPES) for match in one.finditer(text)]
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(found):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _looks_encoded(run: str) -> bool:
    whole = run.replace("\n", "")
    # In random base64 of 64 characters each class stands some ten times; fewer than three are rare.
    least = 3 * len(whole) / 64
    counts = (
        sum(map(str.isdigit, whole)),
        sum(map(str.isupper, whole)),
        sum(map(str.islower, whole)),
    )
    return len(whole) >= 64 and all(count >= least for count in counts)


def visible_characters(text: str) -> int:
    """Return the characters of markup that a reader sees: tags, scripts, styles, comments gone."""
    return len(" ".join(_TAG.sub(" ", text).split()))
