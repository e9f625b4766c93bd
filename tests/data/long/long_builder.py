"""Small libraries of made-up documents, and a language model whose entropies are known."""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from fivefold.data.document import Document, document_id
from fivefold.data.long.config import IndexConfig
from fivefold.data.long.library import Library, LibraryBuilder, open_library
from fivefold.data.long.measure import Ruler
from fivefold.data.long.scorer import TokenScores
from fivefold.text.tokenizer import Tokenizer

_SYLLABLES = "be ce di do gu ha je ki lo mu na pe qui ro su ta ve wi xo yu za"


def word(random: Random) -> str:
    return "".join(random.choice(_SYLLABLES.split()) for _ in range(4))


def topic_words(topic: int, count: int = 40) -> list[str]:
    random = Random(1000 + topic)
    return [word(random) for _ in range(count)]


def prose(topic: int, seed: int, sentences: int) -> str:
    """Sentences of a topic's words, a blank line after every fifth."""
    random, own = Random(seed), topic_words(topic)
    lines = []
    for number in range(sentences):
        words = [random.choice(own) for _ in range(9)] + [word(random)]
        lines.append(" ".join(words).capitalize() + "." + ("\n" if number % 5 == 4 else ""))
    return "\n".join(lines) + "\n"


def make_document(text: str, url: str, lang: str = "en", source: str = "s") -> Document:
    return Document(document_id(source, url), text, source, url, lang)


def make_library(
    folder: Path, documents: Sequence[Document], ruler: Ruler, chunk_tokens: int = 64
) -> Library:
    config = IndexConfig(chunk_tokens=chunk_tokens)
    builder = LibraryBuilder(config, ruler)
    for document in sorted(documents, key=lambda one: one.id):
        builder.add(builder.cut(document))
    builder.write(folder)
    return open_library(folder)


class CacheModel:
    """A language model that knows nothing but what it has read.

    Each token has an entropy of `RESTING` nats, but after the mark `~` it is uniform over the
    vocabulary; unless the same three tokens and mark stood earlier in the row: then the token that
    followed them has the probability `RECALLED`, and the others share the rest.
    """

    RESTING = 0.5
    RECALLED = 0.99

    def __init__(self, tokenizer: Tokenizer, context_tokens: int = 512) -> None:
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self._mark = tokenizer.encode("~")[0]

    @property
    def surprised(self) -> float:
        return math.log(self.tokenizer.vocab_size)

    @property
    def recalling(self) -> float:
        rest, others = 1 - self.RECALLED, self.tokenizer.vocab_size - 1
        return -self.RECALLED * math.log(self.RECALLED) - rest * math.log(rest / others)

    def score_tokens(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
        return [self._score(list(row)) for row in rows]

    def _score(self, row: list[int]) -> TokenScores:
        entropy = np.full(len(row), self.RESTING, dtype=np.float32)
        entropy[0] = np.nan
        seen: set[tuple[int, ...]] = set()
        for place in range(1, len(row)):
            if row[place - 1] == self._mark:
                key = tuple(row[max(0, place - 4) : place - 1])
                entropy[place] = self.recalling if key in seen else self.surprised
                seen.add(key)
        return TokenScores(entropy, -entropy)
