r"""Numbers and the normal form of mathematics: equal writings, different answers, properties."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.verify.maths import compare_forms
from fivefold.verify.normal_form import form_to_number, normal_form
from fivefold.verify.number import NUMBER_IN_TEXT, read_number

MINUS = "\N{MINUS SIGN}"
PIECES = (
    *(r"\frac", r"\dfrac", r"\sqrt", r"\text", r"\left", r"\right", r"\cdot", r"\pi", r"\le"),
    *(r"\,", r"\ ", r"\\", r"\%", r"\$", r"\(", r"\)", r"^\circ", r"^{\circ}", "{,}", "~", MINUS),
    *("{", "}", "(", ")", "[", "]", "$", "%", ",", ".", ";", "/", "-", "+", "=", "^", "_"),
    *(" ", "  ", "\n", "0", "1", "2", "7", "12", "345", "1,234", "2.50", ".5", "x", "y", "ab", "°"),
)
LATEX = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(LATEX | st.text(max_size=20))
def test_normal_form_is_idempotent(text: str) -> None:
    assert normal_form(normal_form(text)) == normal_form(text)


@pytest.mark.parametrize(
    "writings",
    [
        [
            "1234",
            "1,234",
            "1{,}234",
            r"\$1,234",
            "1234.",
            "1234.00",
            "$1234$",
            r"\(1234\)",
            "{1234}",
        ],
        [
            r"\frac{1}{2}",
            r"\dfrac12",
            r"\frac 1 2",
            "1/2",
            r"\tfrac{1}2",
            r"\frac1{2}",
            "0.5",
            ".50",
        ],
        ["-3", f"{MINUS}3", "- 3", "-3.0", r"-\frac{6}{2}", r"\frac{-3}{1}"],
        ["90", r"90^\circ", r"90^{\circ}", "90°", r"90\degree"],
        ["50", r"50\%", "50%"],
        [r"2\sqrt{3}", r"2\sqrt3", r"2 \sqrt {3}", r"\left2\sqrt3\right"],
        [r"\pi r^2", r"\pi  r^2", r"\pi\,r^2", r"$\pi~r^2$"],
        [r"x\leq 3", r"x \le 3", r"x\leqslant3"],
        [r"3\cdot 4", r"3\times4", "3 * 4"],
        ["Tuesday", r"\text{Tuesday}", r"\textbf{ Tuesday }", "Tuesday."],
        [r"\left(1,\,2\right)", r"\left( 1, 2 \right)"],
    ],
    ids=lambda writings: writings[0],
)
def test_writings_of_one_answer_are_equal(writings: list[str]) -> None:
    for one in writings:
        for other in writings:
            assert compare_forms(one, other) is True, (one, other)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *(("1234", "1, 234"), ("12", "1 2"), ("(1,234)", "(1234)"), ("x=5", "y=5"), ("5", "x=5")),
        *(("5", r"5\text{ cm}"), (r"\pi r", r"\pir"), ("0.333", "1/3"), ("2x", "x2"), ("a", "A")),
        *((r"\frac{1}{0}", "1"), (r"\leftarrow", "arrow"), (r"a\\ b", r"a\b"), ("{1}{2}", "12")),
    ],
)
def test_forms_do_not_decide_what_is_doubtful(gold: str, answer: str) -> None:
    assert compare_forms(gold, answer) is None


@pytest.mark.parametrize(("gold", "answer"), [("5", "6"), ("-5", "5"), ("1000", "1,001")])
def test_different_integers_are_different(gold: str, answer: str) -> None:
    assert compare_forms(gold, answer) is False


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_numbers_survive_every_way_of_writing_them(value: int, zeros: int) -> None:
    grouped = f"{value:,}"
    for text in (str(value), grouped, f"{grouped}.{'0' * zeros}", f" {value} ", f"{value}%"):
        assert read_number(text) == value
        assert form_to_number(normal_form(text)) == value
        assert compare_forms(str(value), text) is True
    money = f"-${-value:,}" if value < 0 else f"${value:,}"
    assert read_number(money) == value


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_exact(top: int, bottom: int) -> None:
    assert read_number(f"{top}/{bottom}") == Fraction(top, bottom)
    assert form_to_number(normal_form(rf"\dfrac{{{top}}}{{{bottom}}}")) == Fraction(top, bottom)


@given(st.decimals(-(10**6), 10**6, places=3))
def test_decimals_are_exact(value) -> None:
    assert read_number(str(value)) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", ".", "1,23", "12,34,567", "1 2", "five", "1/0", "--5", "+-5", "1e999", "0x10"),
        *("1e999999999", "9" * 5000, "1/2/3", "nan", "inf", "²", "1.2.3", "٣"),
    ],
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert read_number(text) is None


def test_exponents_are_bounded() -> None:
    assert read_number("1.5e3") == 1500
    assert read_number("1e-2") == Fraction(1, 100)
    assert read_number("1e100") is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It costs $1,234.50 or 3/4 of 7%.", ["$1,234.50", "3/4", "7%"]),
        ("5-3 is 2, and -4 is less", ["5", "3", "2", "-4"]),
        ("room b12, version 1.2.3", ["1.2"]),
        ("none", []),
    ],
)
def test_numbers_among_words(text: str, numbers: list[str]) -> None:
    assert [match.group() for match in NUMBER_IN_TEXT.finditer(text)] == numbers


def test_hostile_text_is_normalised_in_bounded_time() -> None:
    """Nothing in the rules may backtrack for ever; a regular fault here takes minutes."""
    for piece in ("{", "{}", r"\frac", "1,", "1.0", r"\text{", "1 ", r"\!"):
        text = (piece * 2000)[:2000]
        assert isinstance(normal_form(text), str)
        assert re.fullmatch(r"(?s).{0,4000}", normal_form(text))
