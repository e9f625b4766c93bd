"""A small tokenizer, trained once for the room, and its saved directory."""

from pathlib import Path

import pytest

from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

TRAIN_TEXTS = (
    "The lighthouse keeper counted 1234567 waves, then slept. It's late; we'll see.\n",
    "def add(left, right):\n    return left + right  # the sum\n\n\nprint(add(20, 22))\n",
    "灯塔看守人数着海浪然后睡着了。海浪还在。\n灯台の守り人は波を数えた。\n",
)
CONFIG = TokenizerConfig(vocab_size=520)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(TRAIN_TEXTS * 3, CONFIG))


@pytest.fixture(scope="session")
def tokenizer_directory(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return directory
