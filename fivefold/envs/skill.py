"""What a generator of problems is: a numbered set of instances at each level of difficulty.

A level is a finite set, and its instances are numbered from 0 without gaps. Order, repetition and
the held-out share are therefore permutations of numbers (`procedural`), and no generator draws at
random. Letters and digits stand apart (`k d f`), so that they are the same tokens in a question, in
thinking and in an answer, whatever the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Instance:
    """One question with its solution."""

    question: str
    thinking: str
    """Short steps that lead to the answer."""
    answer: str
    """All of the visible content."""


@dataclass(frozen=True)
class Skill:
    """A kind of question."""

    name: str
    verifier: Literal["exact", "number"]
    """How the content is compared with the answer."""
    levels: int
    """Number of levels; level 1 is the easiest."""
    count: Callable[[int], int]
    """Number of instances at a level."""
    make: Callable[[int, int], Instance]
    """Return an instance from its level and its number, from 0 to below `count(level)`."""


def digits_of(number: int, radix: int, length: int) -> list[int]:
    """Return the `length` lowest digits of a number, the lowest first."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, radix)
        digits.append(digit)
    return digits


def choose_wording(wordings: tuple[str, ...], number: int) -> str:
    """Return one of several wordings, spread over the instances but fixed for each."""
    # Knuth's multiplicative hash: the number's low digits are letters of the question itself.
    return wordings[(number * 2654435761 % 2**32) * len(wordings) >> 32]
