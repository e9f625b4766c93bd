from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from data_builder import deb_bytes, silent_track

from fivefold.data.document import read_documents
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

PLAYS = Path(__file__).parents[1] / "fixtures" / "text" / "plays.jsonl"


@pytest.fixture
def track():
    return silent_track


@pytest.fixture
def make_deb(tmp_path: Path) -> Callable[..., Path]:
    def build(files: Mapping[str, bytes], compression: str = "xz", name: str = "x.deb") -> Path:
        path = tmp_path / name
        path.write_bytes(deb_bytes(files, compression))
        return path

    return build


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [document.text for document in read_documents(PLAYS)]
    return Tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=1024)))
