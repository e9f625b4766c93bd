"""Symbolic equality by math-verify; runs inside a worker process only.

Its own time limits use SIGALRM, which works in a main thread alone, and return "different" when
they strike; here both are off, for the process has a limit from outside. Exceptions are let
through for the same reason. Source: math-verify 0.9 (Hugging Face), `parse` and `verify`; the gold
comes first, as the comparison is not symmetric.

Surprise: text that the library cannot read comes back as text, not as nothing, and its LaTeX reader
takes any exception, exhausted memory among them, for text of that kind. Of an environment that is
not closed it reads the last number, and of mathematics marked as such within its own marks nothing:
neither reaches it.
"""

import logging
import re
from collections import Counter
from typing import Any

import math_verify
from math_verify.parser import parse_latex_cached

_MARKS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
"""Where mathematics begins or ends within text."""
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([^{}]*)\}")


def compare(answer: str, arguments: dict[str, Any]) -> list[Any]:
    """Return 1 or 0 and a reason, or None and a reason where `arguments["gold"]` is unreadable.

    Raises:
        Exception: whatever comparing raises; MemoryError or RecursionError from reading, too.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its limits are off
    gold, given = _parse(arguments["gold"]), _parse(answer)
    if all(isinstance(part, str) for part in gold) and (not gold or gold != given):
        return [None, "the task's own answer is no mathematics"]
    if not given:
        return [0, "the answer is no mathematics"]
    is_equal = math_verify.verify(gold, given, timeout_seconds=None, raise_on_error=True)
    return [int(is_equal), "equal" if is_equal else "differs"]


def _parse(text: str) -> list[Any]:
    text = _MARKS.sub(" ", text).strip().rstrip(".;,")
    if not _is_closed(text):
        return [text]
    # A box makes it one expression; without it the extraction would look for the best part, as it
    # would within the box for plain expressions: it reads 2 in a system of equations.
    parsed = math_verify.parse(
        f"$\\boxed{{{text}}}$",
        [math_verify.LatexExtractionConfig()],
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        raise_on_error=True,
    )
    # Beside expressions there may be the bare text, which compares as text.
    for part in parsed:
        if isinstance(part, str):
            _check_resources(part)
    return parsed


def _is_closed(latex: str) -> bool:
    """Do braces and environments end that begin?"""
    environments = {"begin": Counter[str](), "end": Counter[str]()}
    for side, name in _ENVIRONMENT.findall(latex):
        environments[side][name] += 1
    plain = _ESCAPED.sub("", latex)
    is_level = plain.count("{") == plain.count("}")
    return is_level and environments["begin"] == environments["end"]


def _check_resources(latex: str) -> None:
    """Read LaTeX again, which costs nothing if it was read, and raise if resources ran out."""
    try:
        parse_latex_cached(latex)
    except Exception as error:  # anything else is a fault of the text
        if isinstance(error, MemoryError | RecursionError):
            raise


# The library loads half of itself with its first comparison, in 0.6 s: that is part of starting,
# not of the time that an answer may take.
compare("(x+1)^2", {"gold": "x^2+2x+1"})
