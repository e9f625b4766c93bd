"""Texts to vectors: windows of a text, what embeds them, and their mean.

A long page is represented by its head, middle and tail: each window is embedded by itself, and the
mean of the vectors is brought to length 1. What embeds is any `Embedder`: hashed TF-IDF (nothing to
download), an endpoint, or a model that a factory of another room opens, for this one imports no
torch. A factory travels to worker processes as a string.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fivefold.data.factory import load_factory
from fivefold.data.long.scorer import Embedder
from fivefold.data.long.vectors import HashedTfidf, content_words
from fivefold.data.web.config import EmbedConfig

_TEXTS_AT_ONCE = 32


def cut_windows(text: str, count: int, size: int) -> list[str]:
    """Return up to `count` windows of `size` characters, evenly spread; a short text is one."""
    last = max(0, len(text) - size)
    needed = min(count, -(-len(text) // size))
    begins = sorted({round(last * k / max(1, needed - 1)) for k in range(needed)})
    return [text[begin : begin + size] for begin in begins] or [text]


def embed_documents(
    texts: Sequence[str], embedder: Embedder, config: EmbedConfig
) -> NDArray[np.float32]:
    """Return float32 [texts, dimensions]: means of the windows' vectors, of length 1 or 0."""
    windows = [cut_windows(text, config.windows, config.window_characters) for text in texts]
    flat = [window for some in windows for window in some]
    parts = [
        embedder.embed(flat[begin : begin + _TEXTS_AT_ONCE])
        for begin in range(0, len(flat), _TEXTS_AT_ONCE)
    ]
    if not parts:
        return np.zeros((0, 0), dtype=np.float32)
    vectors = to_length_one(np.concatenate(parts))
    owner = np.repeat(np.arange(len(texts)), [len(some) for some in windows])
    sums = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, owner, vectors)
    return to_length_one(sums)


def to_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def count_words(texts: Iterable[str]) -> tuple[dict[str, int], int]:
    """Return in how many texts each word stands, in alphabetical order, and how many texts."""
    frequencies: Counter[str] = Counter()
    count = 0
    for text in texts:
        count += 1
        frequencies.update(set(content_words(text)))
    return dict(sorted(frequencies.items())), count


def open_embedder(config: EmbedConfig, frequencies: Mapping[str, int], count: int) -> Embedder:
    """Open what a config names; TF-IDF knows the words that stand in some of `count` texts.

    Raises:
        ConfigError: no such module or function.
        FivefoldError: as the factory does.
    """
    if config.url:
        from fivefold.data.web.endpoint_embedder import EndpointEmbedder

        return EndpointEmbedder(config.url, config.model)
    if config.factory:
        return load_factory(config.factory, "embed.factory")(config.model)
    most = max(1.0, config.max_document_share * count)
    kept = {word: times for word, times in frequencies.items() if times <= most}
    return HashedTfidf(kept, count, config.dimensions)
