"""A factory that a config can name: the model with known entropies on a tokenizer's directory."""

from pathlib import Path

from long_builder import CacheModel

from fivefold.text.tokenizer import load_tokenizer


def open_toy(directory: str) -> CacheModel:
    return CacheModel(load_tokenizer(Path(directory)))
