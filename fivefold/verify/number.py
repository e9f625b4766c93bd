"""Reading a number that a model or a data set wrote, exactly, as a fraction.

A sign, a currency sign, commas between thousands, a decimal point, an exponent, a percent sign
(ignored: word problems' answers leave it out) and `a/b` are understood. Surprise: `1e999999999` is
a short text and an integer of a billion digits, so exponents have at most two digits here, and
texts at most 100 characters.
"""

import re
from fractions import Fraction

_MOST_CHARACTERS = 100
_MINUS = "\N{MINUS SIGN}"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{{1,2}}(?!\d))?"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)[$€£]?(?P<inner_sign>[+-]?)(?P<top>{_DECIMAL})"
    rf"(?:\s*/\s*(?P<bottom>{_DECIMAL}))?\s*%?",
    re.ASCII,
)
NUMBER_IN_TEXT = re.compile(
    rf"(?<![\w.,])(?:[-{_MINUS}+](?=[$€£]?[\d.]))?[$€£]?{_DECIMAL}(?:/\d+)?%?", re.ASCII
)
"""A number among words; a minus after a word or a number is a dash."""


def read_number(text: str) -> Fraction | None:
    """Return the number that the whole text is, or None."""
    if len(text) > _MOST_CHARACTERS:
        return None
    text = text.strip().replace(_MINUS, "-").removesuffix(".")
    match = _NUMBER.fullmatch(text)
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    value = _decimal_to_fraction(match["top"])
    if match["bottom"] is not None:
        divisor = _decimal_to_fraction(match["bottom"])
        if divisor == 0:
            return None
        value /= divisor
    is_negative = "-" in (match["sign"], match["inner_sign"])
    return -value if is_negative else value


def _decimal_to_fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", "").removesuffix("."))
