"""Which issue a change resolves, read from its message and the changelog fragments that it adds.

Four ways, the surest first: a towncrier fragment `changelog/123.bugfix.rst` (which also describes
the change for people), words such as `Fixes #123`, a number in the subject line, a number anywhere
in the message. A pull request's own number (`Merge pull request #45`, a subject that ends in
`(#45)`) is no issue.

Issues come from a dump where there is one. Without it the fragment, and failing that the message,
stands for the issue: what is known of it from plain git.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fivefold.data.code.git import Change
from fivefold.errors import CorruptFileError, MissingFileError

_MERGE = re.compile(r"\AMerge pull request #(\d+)|\AMerge branch .* into |\AMerge PR #(\d+)")
_SQUASH = re.compile(r"\(#(\d+)\)\s*\Z")
_FIXES = re.compile(r"\b(?:fix|close|resolve)(?:e?[sd])?:?\s+(?:issue\s+)?#(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w/&])#(\d+)\b")
_FRAGMENT = re.compile(
    r"(?:^|/)(?:changelog|changes|newsfragments|changelog\.d|news|whatsnew)/"
    r"(?P<issue>\d+)\.(?P<kind>[a-z]+)(?:\.\d+)?(?:\.(?:rst|md|txt))?$"
)
_NEWS = re.compile(
    r"(?:^|/)(?:changelog|changes|newsfragments|changelog\.d|news|whatsnew)/|"
    r"(?:^|/)(?:changelog|changes|history|news|authors|contributors)(?:\.\w+)?$",
    re.IGNORECASE,
)
_BOT = re.compile(
    r"\[bot\]|\b(?:dependabot|pre-commit-ci|renovate|github-actions|pyup|bors)\b", re.I
)

By = Literal["fragment", "fixes", "subject", "mention"]


@dataclass(frozen=True)
class Link:
    """What connects a change with an issue."""

    issue: int
    by: By
    pull: int | None = None
    """The pull request's number, where the message tells."""
    kind: str = ""
    """The fragment's kind: bugfix, feature, ..."""
    fragment: str = ""
    """Blob of the fragment."""


@dataclass(frozen=True)
class Issue:
    """An issue as a person wrote it, or what stands for it."""

    number: int
    title: str
    body: str
    comments: tuple[str, ...] = ()
    created: str = ""
    """ISO 8601; empty if unknown."""
    author: str = ""
    is_from_message: bool = field(default=False)
    """Whether the change's own message stands for it."""


def is_news(path: str) -> bool:
    """Return whether a file only tells what changed."""
    return bool(_NEWS.search(path))


def is_bot(change: Change) -> bool:
    """Return whether a program made the change."""
    return bool(_BOT.search(f"{change.author} {change.email}"))


def find_link(change: Change) -> Link | None:
    """Return the issue that a change resolves; None if nothing tells."""
    subject, _, body = change.message.partition("\n")
    merge, squash = _MERGE.match(subject), _SQUASH.search(subject)
    number = (merge and (merge[1] or merge[2])) or (squash and squash[1])
    pull = int(number) if number else None
    for file in change.files:
        found = _FRAGMENT.search(file.path)
        if found and file.new_blob and not file.old_blob:
            return Link(int(found["issue"]), "fragment", pull, found["kind"], file.new_blob)
    ways: tuple[tuple[By, re.Pattern[str], str], ...] = (
        ("fixes", _FIXES, change.message),
        ("subject", _NUMBER, "" if merge else subject),
        ("mention", _NUMBER, body),
    )
    for by, pattern, text in ways:
        numbers = [int(one) for one in pattern.findall(text)]
        others = [one for one in numbers if one != pull]
        if others:
            return Link(others[0], by, pull)
    # A squashed pull request without an issue: its own number is all there is.
    return Link(pull, "subject", pull) if pull and body.strip() else None


def own_words(change: Change) -> tuple[str, str]:
    """Return title and body of what the change says of itself, without git's own line."""
    subject, _, body = change.message.partition("\n")
    if _MERGE.match(subject):
        title, _, body = body.strip().partition("\n")
        return title.strip(), body.strip()
    return _SQUASH.sub("", subject).strip(), body.strip()


def find_issue(
    change: Change,
    link: Link,
    dump: Mapping[int, Issue],
    read: Callable[[str], str],
) -> Issue:
    """Return the issue of a link: the dump's, the fragment's words, or the message's."""
    if link.issue in dump:
        return dump[link.issue]
    if link.fragment:
        text = read(link.fragment).strip()
        first = re.split(r"(?<=[.:])\s|\n", text, maxsplit=1)
        return Issue(link.issue, first[0].strip(), text[len(first[0]) :].strip())
    title, body = own_words(change)
    return Issue(link.issue, title, body, is_from_message=True)


def read_dump(path: str, repository: str) -> dict[int, Issue]:
    """Return a repository's issues from JSON lines.

    Raises:
        MissingFileError: no such file.
        CorruptFileError: a line is no issue.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(
            expected=f"a dump of issues at `{path}`",
            found="nothing",
            fix="Correct `issues.dump`, or leave it empty",
        )
    issues: dict[int, Issue] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if row["repository"] == repository:
                    issues[int(row["number"])] = _row_to_issue(row)
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptFileError(
                    expected=f"an issue with repository, number and title on line {number} of "
                    f"`{path}`",
                    found=f"{type(error).__name__} {error} in {line[:60]!r}",
                    fix="Correct or remove that line",
                ) from error
    return issues


def _row_to_issue(row: Mapping) -> Issue:
    comments: Iterable = row.get("comments") or ()
    return Issue(
        number=int(row["number"]),
        title=str(row["title"]),
        body=str(row.get("body") or ""),
        comments=tuple(str(one) for one in comments),
        created=str(row.get("created") or ""),
        author=str(row.get("author") or ""),
    )
