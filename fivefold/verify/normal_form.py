r"""The normal form of a mathematical answer: what two writings of one thing have in common.

Rewrites LaTeX until nothing changes: spacing, delimiters, `\text`, currency, degree and percent
signs go; `\dfrac12` and `1/2` become `\frac{1}{2}`, `2.50` becomes `2.5`. Conservative: equal forms
mean equal answers, with the habit of data sets that leave degree and percent signs out. Whatever is
doubtful (units, `x = 5` for `5`, `1, 234` for `1234`) is left for math-verify to decide. Surprise:
idempotence is by construction, being the loop's end.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from fivefold.verify.number import read_number

_ENDS = ((r"\(", r"\)"), (r"\[", r"\]"))
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d{1,50})\}\{(\d{1,50})\}", re.ASCII)
_SPACE = re.compile(
    r"(?P<kept>(?<=\d) (?=\d)|(?<=\d,) (?=\d)|(?<=[A-Za-z]) (?=[A-Za-z]))| ", re.ASCII
)
"""A space that means something (between digits, in a list, after a command or a word), or any."""

_Replacement = str | Callable[[re.Match[str]], str]
_RULES: tuple[tuple[re.Pattern[str], _Replacement], ...] = tuple(
    (re.compile(pattern, re.ASCII), replacement)
    for pattern, replacement in (
        # A sign that LaTeX escapes, or mathematics typeset in text.
        (r"\\?\$", ""),
        (r"\\?%", ""),
        ("\N{MINUS SIGN}", "-"),
        (r"\^\{\\circ\}|\^\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|°", ""),
        # Space that LaTeX inserts; `\\` ends a row of a matrix and is none.
        (r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle)(?![A-Za-z])", ""),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
        # One spelling of each command.
        (r"\\[dtc]frac(?![A-Za-z])", lambda _: r"\frac"),
        (r"\\(?:le|leqslant)(?![A-Za-z])", lambda _: r"\leq"),
        (r"\\(?:ge|geqslant)(?![A-Za-z])", lambda _: r"\geq"),
        (r"\\ne(?![A-Za-z])", lambda _: r"\neq"),
        (r"\\(?:cdot|times)(?![A-Za-z])", "*"),
        # Arguments of one sign get the braces that LaTeX imagines.
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\{\w*\})\s*(\d)", r"\\frac\1{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        # Numbers.
        (r"(?<=\d)\{,\}(?=\d{3})", ","),
        (r"(?<![\w.)}])\.(?=\d)", "0."),
        (r"(?<![\w.])(\d+\.\d*?)0+(?![\d.])", r"\1"),
        (r"(?<![\w.])(\d+)\.(?![\d.])", r"\1"),
        (r"\s+", " "),
    )
)


def normal_form(text: str) -> str:
    """Return the normal form; applying it again changes nothing. Quadratic in the length."""
    form = text
    for _ in range(len(text) + 20):
        before, form = form, _rewrite(form)
        if form == before:
            return form
    raise AssertionError(f"the rules of the normal form do not end on {text!r}")


def form_to_number(form: str) -> Fraction | None:
    """Return the number that a normal form is, or None."""
    if match := _FRACTION.fullmatch(form):
        sign, top, bottom = match.groups()
        if int(bottom) == 0:
            return None
        return Fraction(int(top), int(bottom)) * (-1 if sign else 1)
    return read_number(form)


def _rewrite(form: str) -> str:
    for pattern, replacement in _RULES:
        form = pattern.sub(replacement, form)
    form = _SPACE.sub(lambda space: space["kept"] or "", form).strip()
    for opening, closing in _ENDS:
        if form.startswith(opening) and form.endswith(closing) and len(form) >= 4:
            form = form[2:-2]
    if _is_one_group(form):
        form = form[1:-1]
    form = form.rstrip(".;,").strip()
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", form, re.ASCII):
        form = form.replace(",", "")
    if match := re.fullmatch(r"(-?\d+)/(\d+)", form, re.ASCII):
        form = rf"\frac{{{match[1]}}}{{{match[2]}}}"
    return form


def _is_one_group(form: str) -> bool:
    """Does one pair of braces hold all of it?"""
    if len(form) < 2 or form[0] != "{" or form[-1] != "}" or "\\{" in form or "\\}" in form:
        return False
    depth = 0
    for place, sign in enumerate(form):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return place == len(form) - 1
    return False
