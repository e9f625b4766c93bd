"""Skills about letters: copying, reversing, last letters, counting one."""

from fivefold.data.planted_words import NOUNS
from fivefold.envs.skill import Instance, Skill, choose_wording, digits_of

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def letters_of(number: int, length: int) -> list[str]:
    """Return the string of so many letters that has this number."""
    return [_ALPHABET[digit] for digit in digits_of(number, len(_ALPHABET), length)]


def _copy(level: int, number: int) -> Instance:
    letters = " ".join(letters_of(number, level + 1))
    wordings = ("Repeat these letters: {}", "Write the same letters again: {}", "Copy this: {}")
    return Instance(choose_wording(wordings, number).format(letters), letters, letters)


def _reverse(level: int, number: int) -> Instance:
    letters = letters_of(number, level + 1)
    wordings = (
        "Write these letters backwards: {}",
        "Reverse the order of these letters: {}",
        "Say these letters from last to first: {}",
    )
    return Instance(
        question=choose_wording(wordings, number).format(" ".join(letters)),
        thinking=" ".join(f"{place} {letter}" for place, letter in enumerate(letters, start=1)),
        answer=" ".join(reversed(letters)),
    )


def _last_letters(level: int, number: int) -> Instance:
    words = [NOUNS[digit] for digit in digits_of(number, len(NOUNS), level)]
    wordings = ("Take the last letter of each word: {}", "How does each word end? {}")
    return Instance(
        question=choose_wording(wordings, number).format(" ".join(words)),
        thinking=", ".join(f"{word} {word[-1]}" for word in words),
        answer=" ".join(word[-1] for word in words),
    )


def _count_letter(level: int, number: int) -> Instance:
    """Count a letter in a string of it and two others."""
    number_of_string, target = divmod(number, len(_ALPHABET))
    # Steps of 7 and 13 letters: three different ones, whatever the target.
    choices = [_ALPHABET[(target + step) % len(_ALPHABET)] for step in (0, 7, 13)]
    letters = [choices[digit] for digit in digits_of(number_of_string, 3, level + 2)]
    running, count = [], 0
    for letter in letters:
        count += letter == choices[0]
        running.append(f"{letter} {count}")
    wordings = ("How many times is {0} in {1}?", "Count the letter {0} in {1}.")
    return Instance(
        question=choose_wording(wordings, number).format(choices[0], " ".join(letters)),
        thinking=", ".join(running),
        answer=str(count),
    )


LETTER_SKILLS = (
    Skill("copy", "exact", 7, lambda level: len(_ALPHABET) ** (level + 1), _copy),
    Skill("reverse", "exact", 7, lambda level: len(_ALPHABET) ** (level + 1), _reverse),
    Skill("last_letters", "exact", 4, lambda level: len(NOUNS) ** level, _last_letters),
    Skill(
        "count_letter", "number", 6, lambda level: len(_ALPHABET) * 3 ** (level + 2), _count_letter
    ),
)
