"""The language of a file: by its name, its first line, its ending, and where those fail its words.

Order of decision: whole file name, shebang, modeline, an ending that only one language has; then
content, among the languages that share the ending, or among all. A name that speaks against the
content loses where the content has strong evidence for another language and none for that name:
this repairs files under a wrong ending.

Surprise: content never overrules towards data or prose. A Python file that is one long string
reads like prose and still is Python.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from fivefold.data.code.evidence import evidence
from fivefold.data.code.language import BY_ENDING, BY_INTERPRETER, BY_NAME, LANGUAGES

By = Literal["name", "shebang", "modeline", "ending", "content", "nothing"]

_STRONG = 9
"""Evidence that overrules a name: three places of a certain construct."""
_ENOUGH = 5
"""Evidence that names a language where nothing else does."""
_SHEBANG = re.compile(
    r"\A#!\s*\S*?/?(?:env\s+(?:-\S+\s+)*(?:\w+=\S+\s+)*)?([a-z-]+)[\d.]*(?:\s|\Z)"
)
_EMACS = re.compile(r"-\*-\s*(?:.*?\bmode:\s*)?([\w+#-]+)\s*(?:;.*?)?-\*-", re.IGNORECASE)
_VIM = re.compile(r"\bvim?:.*?\b(?:ft|filetype|syntax)=([\w+#-]+)")
_MODES = {
    "c++": "cpp",
    "c#": "csharp",
    "objc": "objective-c",
    "js": "javascript",
    "sh": "shell",
    "bash": "shell",
    "makefile": "makefile",
    "make": "makefile",
    "rst": "restructuredtext",
}


@dataclass(frozen=True)
class Identified:
    """A language and what decided for it."""

    language: str
    """Name in `LANGUAGES`; empty if nothing tells."""
    by: By
    overruled: str = ""
    """What the name says where content speaks against it."""


def identify(path: str, text: str) -> Identified:
    """Return the language of a file at this path with this text."""
    named, by = _by_name(path, text)
    if len(named) == 1 and not _contradicts(named[0], text):
        return Identified(named[0], by)
    if len(named) > 1:
        return Identified(_best(named, text), "content")
    content = _by_content(text)
    if named:
        # `_contradicts` has found stronger evidence.
        return Identified(content, "content", named[0])
    return Identified(content, "content" if content else "nothing")


def named_languages(path: str) -> tuple[str, ...]:
    """Return the languages that a path alone allows; none if it does not tell."""
    file = PurePosixPath(path.lower())
    return BY_NAME.get(file.name) or BY_ENDING.get(file.suffix, ())


def _by_name(path: str, text: str) -> tuple[tuple[str, ...], By]:
    name = PurePosixPath(path.lower()).name
    if name in BY_NAME:
        return BY_NAME[name], "name"
    head = text[:1000].partition("\n")
    shebang = _SHEBANG.match(head[0])
    if shebang and shebang.group(1) in BY_INTERPRETER:
        return BY_INTERPRETER[shebang.group(1)], "shebang"
    mode = _EMACS.search(head[0]) or _VIM.search("\n".join(text[:400].split("\n", 3)[:3]))
    if mode:
        label = mode.group(1).lower()
        label = _MODES.get(label, label)
        if label in LANGUAGES:
            return (label,), "modeline"
    return named_languages(path), "ending"


def _contradicts(named: str, text: str) -> bool:
    """Return whether the content is clearly of another language than its name says."""
    if LANGUAGES[named].kind != "code" or evidence(text, [named])[named]:
        return False
    content = _by_content(text)
    return bool(content) and content != named and evidence(text, [content])[content] >= _STRONG


def _by_content(text: str) -> str:
    scores = evidence(text, (one.name for one in LANGUAGES.values() if one.kind == "code"))
    best = _most(scores.items())
    return best if scores[best] >= _ENOUGH else ""


def _best(candidates: Iterable[str], text: str) -> str:
    return _most(evidence(text, candidates).items())


def _most(scores: Iterable[tuple[str, int]]) -> str:
    """Return the name with the highest score; of equal ones the first."""
    return max(scores, key=lambda item: item[1])[0]
