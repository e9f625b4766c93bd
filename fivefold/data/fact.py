"""Short facts to plant in text, each with a value of its own.

"The access code of the lighthouse at Varna is 48213." gives an attribute of a subject a value.
Subjects have two parts (a thing and a place, or two
names), and a distractor shares the attribute and one of the parts: only both parts together tell
which value is asked for, and the value that was mentioned last is the wrong one. Values never
repeat: place k of a seeded permutation of all values is the k-th value, and held-out facts take
theirs from another stretch of it than training.
"""

from dataclasses import dataclass, replace

import numpy as np

from fivefold.data.config import PlantedConfig
from fivefold.data.order import permuted_index
from fivefold.data.planted_words import (
    ADJECTIVES,
    FIRST_NAMES,
    LAST_NAMES,
    NOUNS,
    NUMBER_ATTRIBUTES,
    PLACES,
    THINGS,
    WORD_ATTRIBUTES,
)
from fivefold.errors import ConfigError

_HELDOUT_PARTS = 5
"""One of so many parts of all values is for held-out facts."""


@dataclass(frozen=True)
class Fact:
    """An attribute of a subject and its value."""

    attribute: str
    first: str
    """Thing, or first name."""
    second: str
    """Place, or last name."""
    value: str

    @property
    def question(self) -> str:
        """The sentence up to its value, without the space before it."""
        is_place = self.second in PLACES
        subject = (
            f"the {self.first} at {self.second}" if is_place else f"{self.first} {self.second}"
        )
        return f"The {self.attribute} of {subject} is"

    @property
    def sentence(self) -> str:
        """The whole statement."""
        return f"{self.question} {self.value}."


class FactSource:
    """An endless supply of facts with values of their own, for one split."""

    def __init__(self, config: PlantedConfig, split: str) -> None:
        """Begin with the first value of `split` (train or heldout)."""
        self._config = config
        self._split = split
        self._used = {"number": 0, "word": 0}

    def draw(self, random: np.random.Generator, haystack: str, taken: set[str]) -> Fact:
        """Return a fact whose question is not among `taken` and that `haystack` does not hold."""
        while True:
            if random.random() < self._config.word_share:
                attribute, kind = _choose(random, WORD_ATTRIBUTES), "word"
            else:
                attribute, kind = _choose(random, NUMBER_ATTRIBUTES), "number"
            firsts, seconds = _subject_lists(bool(random.integers(2)))
            fact = Fact(attribute, _choose(random, firsts), _choose(random, seconds), "")
            if fact.question not in taken and fact.question not in haystack:
                return replace(fact, value=self._next_value(kind, haystack))

    def draw_distractor(
        self, random: np.random.Generator, fact: Fact, haystack: str, taken: set[str]
    ) -> Fact:
        """Return a fact of the same form about a subject that shares one part with `fact`'s."""
        kind = "word" if fact.attribute in WORD_ATTRIBUTES else "number"
        firsts, seconds = _subject_lists(fact.second in PLACES)
        while True:
            if random.integers(2):
                other = replace(fact, first=_choose(random, firsts))
            else:
                other = replace(fact, second=_choose(random, seconds))
            if other.question not in taken and other.question not in haystack:
                return replace(other, value=self._next_value(kind, haystack))

    def _next_value(self, kind: str, haystack: str) -> str:
        """Return the next value of a kind that `haystack` does not hold.

        Raises:
            ConfigError: all values of the kind are used up.
        """
        smallest_number = 10 ** (self._config.number_digits - 1)
        count = len(ADJECTIVES) * len(NOUNS) if kind == "word" else 9 * smallest_number
        heldout = count // _HELDOUT_PARTS
        begin, end = (0, heldout) if self._split == "heldout" else (heldout, count)
        while True:
            place = begin + self._used[kind]
            if place >= end:
                raise ConfigError(
                    expected=f"at most {end - begin:,} planted {kind} values for {self._split}",
                    found="a need for more, as no value may repeat",
                    fix="Raise `tokens.planted.number_digits` and lower `tokens.planted.word_share`"
                    ", or plant in fewer tokens",
                )
            self._used[kind] += 1
            index = int(permuted_index(place, count, self._config.seed, epoch=0))
            if kind == "word":
                value = f"{ADJECTIVES[index // len(NOUNS)]} {NOUNS[index % len(NOUNS)]}"
            else:
                value = str(smallest_number + index)
            if value not in haystack:
                return value


def _subject_lists(is_place: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (THINGS, PLACES) if is_place else (FIRST_NAMES, LAST_NAMES)


def _choose(random: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(random.integers(len(words)))]
