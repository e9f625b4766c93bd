"""How much of a file is comment, literal string or code, without a parser of its language.

One pass of one regular expression: block comments, line comments and literal strings, whichever
begins first. Python's triple-quoted strings that stand as a statement are documentation and count
as comments.

Surprise: a quote inside a line of prose (an apostrophe in Lisp, a prime in Haskell) would open a
string; so a string in single or double quotes ends at its line's end at the latest, unless a
backslash stands there.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from fivefold.data.code.language import LANGUAGES, Language


@dataclass(frozen=True)
class Lexed:
    """Characters of each sort; the rest of a text is code."""

    comment_characters: int
    string_characters: int


@lru_cache(maxsize=128)
def _pattern(name: str) -> re.Pattern[str] | None:
    language = LANGUAGES.get(name)
    if language is None:
        return None
    strings = [_string(quote) for quote in language.quotes]
    if name in ("python", "cython"):
        triple = r"(?s:\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z))"
        parts = [rf"(?m:(?P<doc>^[ \t]*[rRuU]?{triple}))", rf"(?P<triple>{triple})"]
    else:
        parts = []
    comments = _comments(language)
    if comments:
        parts.append(f"(?P<comment>{'|'.join(comments)})")
    if strings:
        parts.append(f"(?P<string>{'|'.join(strings)})")
    return re.compile("|".join(parts)) if parts else None


def _comments(language: Language) -> list[str]:
    blocks = [
        rf"(?s:{re.escape(begin)}.*?(?:{re.escape(end)}|\Z))" for begin, end in language.block
    ]
    return [*blocks, *(rf"{re.escape(mark)}[^\n]*" for mark in language.line)]


def _string(quote: str) -> str:
    mark = re.escape(quote)
    if quote == "`":
        return rf"{mark}(?s:(?:\\.|[^\\{mark}])*)(?:{mark}|\Z)"
    return rf"{mark}(?:\\(?s:.)|[^\\\n{mark}])*(?:{mark}|(?=\n)|\\?\Z)"


def lex(text: str, language: str) -> Lexed:
    """Count a text's characters in comments and in literal strings; marks and quotes included."""
    pattern = _pattern(language)
    comment = string = 0
    for found in pattern.finditer(text) if pattern else ():
        size = found.end() - found.start()
        if found.lastgroup in ("comment", "doc"):
            comment += size
        else:
            string += size
    return Lexed(comment, string)
