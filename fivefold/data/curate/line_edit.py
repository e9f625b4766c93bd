"""Line edits of RefinedWeb (arXiv:2306.01116, appendix G.2) as DCLM-Baseline applies them.

Lines that are mostly capitals, only digits, a counter ("3 likes") or a single word go; phrases of
shops and log-ins are cut out of short lines. Each step sees what the step before it left, page
edges stripped, because a stripped edge can turn a line into one that the next step takes.
Addresses in the text are removed first, before the page is measured.

Deviations: DCLM finds addresses by the list of all top-level domains; here a scheme, `www.` or one
of the common domains marks one. In "Read more..." DCLM's dots stand for any three characters; so
here.
"""

# Typographic and full-width marks are what these rules are about.
# ruff: noqa: RUF001

import re
from collections.abc import Callable
from dataclasses import dataclass

from fivefold.data.curate.config import LineEditConfig
from fivefold.data.curate.verdict import Edit
from fivefold.data.curate.words import unicode_words

_ADDRESS = re.compile(
    r"[^\S\n]{0,10}(?:(?:https?|ftp)://[^\s<>\"'，。、）]+|\bwww\.[-\w]+\.[^\s<>\"'，。、）]+"
    r"|\b[-\w]+(?:\.[-\w]+){0,4}\.(?:com|org|net|edu|gov|info|io|co\.uk|de|cn|ru|fr|jp)\b(?:/[^\s<>\"'，。、）]*)?"
    r"|\b(?:\d{1,3}\.){3}\d{1,3}\b(?:[:/][-\w()@:%+.~#?&/=]*)?)",
    re.ASCII | re.IGNORECASE,
)
_ANCHOR = re.compile(
    r"://|\.(?:(?<=www\.)|(?:com|org|net|edu|gov|info|io|co\.uk|de|cn|ru|fr|jp)\b"
    r"|(?<=\d\.)\d{1,3}\.\d)",
    re.ASCII | re.IGNORECASE,
)
"""What an address has in it; as it begins with one of two marks, most of a text is skipped."""
_MANY_LINE_ENDS = re.compile(r"\n{3,}")
_COUNTER = re.compile(
    r"\W*\d[,.\d]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes"
    r"|downloads|views|followers)\W*"
)
_PHRASES = (
    ("items_in_cart", "items in cart", re.compile(r"\s?items in cart", re.IGNORECASE)),
    ("read_more", "read more", re.compile(r"\s?Read more...$", re.IGNORECASE)),
    ("sign_in", "sign-in", re.compile(r"^Sign-in\s?", re.IGNORECASE)),
)
_CAPITALS = bytes(range(ord("A"), ord("Z") + 1))


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as it is now, and where it stood in the text that came in."""

    text: str
    begin: int
    end: int


def remove_addresses(text: str) -> tuple[str, tuple[Edit, ...]]:
    """Take out web addresses, then let at most two line ends follow each other."""
    edits: list[Edit] = []
    end = 0
    for anchor in _ANCHOR.finditer(text):
        if anchor.start() < end:
            continue
        # An address lies in one line: the rest of the text is not looked at.
        begin = max(end, text.rfind("\n", 0, anchor.start()) + 1)
        end = text.find("\n", anchor.end())
        end = len(text) if end < 0 else end
        edits += [
            Edit("edit.address", *m.span(), m.group()) for m in _ADDRESS.finditer(text, begin, end)
        ]
    cleaned = _cut(text, edits) if edits else text
    if "\n\n\n" in cleaned:
        cleaned = _MANY_LINE_ENDS.sub("\n\n", cleaned)
    return cleaned, tuple(edits)


def _cut(text: str, edits: list[Edit]) -> str:
    parts, start = [], 0
    for edit in edits:
        parts.append(text[start : edit.begin])
        start = edit.end
    return "".join([*parts, text[start:]])


def edit_lines(
    text: str, config: LineEditConfig, *, chinese: bool = False
) -> tuple[str, tuple[Edit, ...]]:
    """Return the text that the edits leave, perhaps none, and what they took."""
    edits: list[Edit] = []
    lines = _to_lines(text)
    lines = _strip(_keep(lines, lambda line: not _is_capitals(line, config), "capitals", edits))
    lines = _strip(_keep(lines, lambda line: not line.isdigit(), "digits", edits))
    lines = _strip(_keep(lines, lambda line: not _is_counter(line), "counter", edits))
    lines = _keep(lines, lambda line: not _is_short(line, config, chinese), "short_line", edits)
    whole = text.lower()
    for name, needle, pattern in _PHRASES:
        if needle in whole:
            lines = _strip(_cut_phrase(lines, config, name, pattern, edits))
        else:
            lines = _strip(lines)
    return "\n".join(line.text for line in lines), tuple(sorted(edits, key=lambda edit: edit.begin))


def _to_lines(text: str) -> list[_Line]:
    lines, begin = [], 0
    for part in text.split("\n"):
        lines.append(_Line(part, begin, begin + len(part)))
        begin += len(part) + 1
    return lines


def _keep(
    lines: list[_Line], keeps: Callable[[str], bool], name: str, edits: list[Edit]
) -> list[_Line]:
    kept = [line for line in lines if not line.text or keeps(line.text)]
    if len(kept) < len(lines):
        gone = {line.begin for line in lines} - {line.begin for line in kept}
        edits += [
            Edit(f"edit.{name}", line.begin, line.end, line.text)
            for line in lines
            if line.begin in gone
        ]
    return kept


def _strip(lines: list[_Line]) -> list[_Line]:
    """Strip the page's edges: empty lines at both ends, and space in the first and last line."""
    first, last = 0, len(lines)
    while first < last and not lines[first].text.strip():
        first += 1
    while last > first and not lines[last - 1].text.strip():
        last -= 1
    lines = lines[first:last]
    if lines and (gone := len(lines[0].text) - len(lines[0].text.lstrip())):
        lines[0] = _cut_line(lines[0], 0, gone)
    if lines and (size := len(lines[-1].text.rstrip())) < len(lines[-1].text):
        lines[-1] = _cut_line(lines[-1], size, len(lines[-1].text))
    return lines


def _cut_line(line: _Line, begin: int, end: int) -> _Line:
    """Cut a part out of a line's text; the line's place is that of what is left."""
    size = len(line.text)
    return _Line(
        line.text[:begin] + line.text[end:],
        line.begin + (0 if begin else end),
        line.end - (0 if end < size else size - begin),
    )


def _is_capitals(line: str, config: LineEditConfig) -> bool:
    if line.isascii():
        content = line.encode()
        capitals = len(content) - len(content.translate(None, _CAPITALS))
    else:
        capitals = sum(map(str.isupper, line))
    return capitals / len(line) > config.upper_case


def _is_counter(line: str) -> bool:
    return _COUNTER.fullmatch(line.lower()) is not None


def _is_short(line: str, config: LineEditConfig, chinese: bool) -> bool:
    least = config.min_line_words
    if chinese:
        return len(unicode_words(line)) < least
    return len(line.split(None, least)) < least


def _cut_phrase(
    lines: list[_Line],
    config: LineEditConfig,
    name: str,
    pattern: re.Pattern[str],
    edits: list[Edit],
) -> list[_Line]:
    left = []
    for line in lines:
        if len(line.text.split()) > config.phrase_line_words or not pattern.search(line.text):
            left.append(line)
            continue
        # From the end: so what comes before a phrase is where it was.
        for match in reversed(list(pattern.finditer(line.text))):
            begin, end = match.span()
            is_last = end == len(line.text)
            place = line.end - (end - begin) if is_last else line.begin + begin
            edits.append(Edit(f"edit.{name}", place, place + end - begin, match.group()))
            line = _cut_line(line, begin, end)
        if line.text.strip():
            left.append(line)
    return left
