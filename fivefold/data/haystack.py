"""Real text as a stream of short units, in which facts can be planted without cutting a sentence.

Documents of a corpus, in hashed order, follow one another; each is cut into sentences, and a long
sentence at line ends or spaces. White space belongs to the unit that it precedes, where every
split rule of our tokenizers begins a piece too: so units are measured alone and their tokens add
up, at most a few too many.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from fivefold.data.document import Document, read_documents
from fivefold.errors import ConfigError
from fivefold.text.tokenizer import Tokenizer

_ASCII_SHARE = 0.9
_BYTES_PER_TOKEN = 5
"""More than tokenizers reach on English, so that the text read is enough."""
_UNIT_CHARACTERS = 120
_DENSEST = 1.25
"""Tokens of a unit, over what the longest unit of usual text has, from which on it is no prose."""
_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)|(?<!\n)(?=\n[ \t]*\n)")


@dataclass(frozen=True)
class Haystack:
    """Units of text with their sizes."""

    units: list[str]
    """Each with the white space before it."""
    tokens: np.ndarray
    """Tokens of each unit: int64 [units]."""

    def stretch(self, begin: int, budget_tokens: int) -> list[int]:
        """Return the numbers of the units from `begin` on that fit, going round at the end."""
        chosen: list[int] = []
        left = budget_tokens
        while True:
            number = (begin + len(chosen)) % len(self.units)
            left -= int(self.tokens[number])
            if left < 0:
                return chosen
            chosen.append(number)


def read_haystack(
    path: Path, needed_tokens: int, longest_context: int, tokenizer: Tokenizer, seed: int
) -> Haystack:
    """Read about `needed_tokens` of English out of a document file, all there is if it is less.

    Raises:
        ConfigError: the text does not fill one row of `longest_context` tokens.
    """
    sizes = [
        (xxhash.xxh3_64_intdigest(document.id.encode(), seed=seed), document.id, len(document.text))
        for document in read_documents(path)
        if is_english(document)
    ]
    places: dict[str, int] = {}
    left = needed_tokens * _BYTES_PER_TOKEN
    for _, document_id, characters in sorted(sizes):
        if left <= 0:
            break
        places[document_id] = len(places)
        left -= characters
    texts = [""] * len(places)
    for document in read_documents(path):
        if document.id in places:
            texts[places[document.id]] = document.text
    units, tokens = _without_dense_units(
        [u for text in texts for u in cut_into_units(text)], tokenizer
    )
    if tokens.sum() < longest_context:
        raise ConfigError(
            expected=f"English text of at least {longest_context:,} tokens in `{path.name}`, "
            "to plant facts in",
            found=f"{int(tokens.sum()):,} tokens",
            fix="Add text to the corpus (for held-out text, raise `corpus.heldout_bytes`), or "
            "shorten `tokens.planted.contexts`",
        )
    return Haystack(units, tokens)


def _without_dense_units(units: list[str], tokenizer: Tokenizer) -> tuple[list[str], np.ndarray]:
    """Leave out drawings and tables of numbers, which take a document's place for nothing."""
    tokens = np.array([len(ids) for ids in tokenizer.encode_batch(units)], dtype=np.int64)
    characters = sum(map(len, units))
    most = _DENSEST * _UNIT_CHARACTERS * int(tokens.sum()) / max(1, characters)
    kept = tokens <= most
    return [unit for unit, keep in zip(units, kept, strict=True) if keep], tokens[kept]


def is_english(document: Document) -> bool:
    """Is this English as far as can be told cheaply: by its language, or by its alphabet?"""
    if document.lang:
        return document.lang == "en"
    ascii_characters = sum(character.isascii() for character in document.text)
    return ascii_characters >= _ASCII_SHARE * len(document.text)


def cut_into_units(text: str) -> list[str]:
    """Cut a document into sentences of at most 120 characters; a blank line precedes the first."""
    units: list[str] = []
    for sentence in _SENTENCE_END.split("\n\n" + text.strip()):
        while len(sentence) > _UNIT_CHARACTERS:
            end = _last_break(sentence)
            units.append(sentence[:end])
            sentence = sentence[end:]
        units.append(sentence)
    return [unit for unit in units if unit.strip()]


def _last_break(sentence: str) -> int:
    """Return where to cut: the last line end or space in reach, else the limit itself."""
    begin = len(sentence) - len(sentence.lstrip()) + 1
    for mark in ("\n", " "):
        end = sentence.rfind(mark, begin, _UNIT_CHARACTERS)
        if end > 0:
            return end
    return _UNIT_CHARACTERS
