"""Symbolic equality by math-verify; runs inside a worker process only.

Its own time limits use SIGALRM, which works in a main thread alone, and return "different" when
they strike; here both are off, for the process has a limit from outside. Exceptions are let
through for the same reason. Source: math-verify 0.9 (Hugging Face), `parse` and `verify`; the gold
comes first, as the comparison is not symmetric.
"""

import logging
from typing import Any

import math_verify


def compare(answer: str, arguments: dict[str, Any]) -> list[Any]:
    """Return 1 or 0 and a reason, or None and a reason where `arguments["gold"]` is unreadable."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its limits are off
    gold = _parse(arguments["gold"])
    if not gold:
        return [None, "the task's own answer is no mathematics"]
    given = _parse(answer)
    if not given:
        return [0, "the answer is no mathematics"]
    is_equal = math_verify.verify(gold, given, timeout_seconds=None, raise_on_error=True)
    return [int(is_equal), "equal" if is_equal else "differs"]


def _parse(text: str) -> list[Any]:
    # A box makes it one expression; without it the extraction would look for the best part.
    parsed = math_verify.parse(f"$\\boxed{{{text}}}$", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    # Beside expressions there may be the bare text, which compares as text.
    return parsed or math_verify.parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
