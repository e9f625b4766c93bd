"""Byte-level BPE: encoding, decoding, document framing, saving and loading.

The tokenizer is a Hugging Face `tokenizers` model, saved so that transformers, vLLM and SGLang
open it. This wrapper adds what training needs: text never turns into a special token (a web page
that contains `<|user|>` must not open a turn), bytes per id for bits-per-byte, a decoder that
streams whole characters, and the framing of documents. The layout of the vocabulary follows the
released GLM-5 tokenizer.

Surprise: two backends share one vocabulary. The one without added tokens encodes, so special ids
cannot come out of text whatever flags the added tokens carry.
"""

import codecs
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from fivefold.artifact import atomic_write
from fivefold.errors import CorruptFileError, MismatchError, MissingFileError
from fivefold.text.chat_template import CHAT_TEMPLATE
from fivefold.text.config import BYTE_VALUES
from fivefold.text.special import (
    ASSISTANT,
    END_OF_TEXT,
    GENERATION_MASK,
    START_OF_PIECE,
    STOP_TOKENS,
    SYSTEM,
)


class Tokenizer:
    """A byte-level BPE vocabulary with GLM's special tokens."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a backend that `bpe.train_tokenizer` made or `load_tokenizer` read.

        Raises:
            MismatchError: GLM's framing, role or stop tokens are not in its vocabulary.
        """
        self._backend = backend
        document = json.loads(backend.to_str())
        self._identity = [
            document["model"]["vocab"],
            document["model"]["merges"],
            document["normalizer"],
            document["pre_tokenizer"],
            document["added_tokens"],
        ]
        self._plain = tokenizers.Tokenizer.from_str(
            json.dumps({**document, "added_tokens": [], "post_processor": None})
        )
        self._special_ids = {token["content"]: token["id"] for token in document["added_tokens"]}
        self._hidden_ids = frozenset(
            token["id"] for token in document["added_tokens"] if token["special"]
        )
        needed = (GENERATION_MASK, START_OF_PIECE, SYSTEM, ASSISTANT, *STOP_TOKENS)
        missing = [token for token in needed if token not in self._special_ids]
        if missing:
            raise MismatchError(
                expected="a tokenizer of the GLM family",
                found=f"one without {' '.join(missing)}",
                fix="Use the tokenizer of a released GLM or of a recipe's `tokenizer` stage",
            )
        self.prefix_ids = [self.id_of(GENERATION_MASK), self.id_of(START_OF_PIECE)]
        self.pad_id = self.id_of(END_OF_TEXT)
        self.stop_ids = tuple(self.id_of(token) for token in STOP_TOKENS)

    def __reduce__(self) -> tuple:
        """Survive pickling, which worker processes need."""
        return _rebuild, (self._backend.to_str(),)

    @property
    def vocab_size(self) -> int:
        """Ids in total, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def content_hash(self) -> str:
        """16 hex digits that change with any id, merge, split rule or special token."""
        text = json.dumps(self._identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens spelled out in it become ordinary bytes."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts on the library's threads; the same ids as `encode` of each."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def frame_document(self, ids: Sequence[int]) -> list[int]:
        """Return `[gMASK] <sop> ids <|endoftext|>`, the form of a pre-training document."""
        return [*self.prefix_ids, *ids, self.pad_id]

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids from which a model continues plain text."""
        return [*self.prefix_ids, *self.encode(text)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD.

        `skip_special` drops control tokens and keeps markup such as `<think>`. Ids outside the
        vocabulary (rows that pad an embedding) have no text.
        """
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """Return the bytes of ids, which may end inside a character."""
        hidden = self._hidden_ids if skip_special else frozenset()
        size = len(self._id_to_bytes)
        return b"".join(
            self._id_to_bytes[token_id]
            for token_id in ids
            if token_id not in hidden and 0 <= token_id < size
        )

    def id_of(self, special: str) -> int:
        """Return the id of a special token; a KeyError names one that does not exist."""
        return self._special_ids[special]

    def is_special(self, token_id: int) -> bool:
        """Is this the id of a special or markup token?"""
        return token_id in self._special_id_set

    def token_bytes(self) -> np.ndarray:
        """Return int32 [W]: the UTF-8 bytes that each id stands for, 0 for special tokens."""
        lengths = np.array([len(text) for text in self._id_to_bytes], dtype=np.int32)
        lengths[list(self._special_id_set)] = 0
        return lengths

    def save_pretrained(self, directory: Path) -> None:
        """Write the files from which transformers, vLLM and SGLang open the same tokenizer."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        contents = {
            "tokenizer.json": self._backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
            "chat_template.jinja": CHAT_TEMPLATE,
        }
        for name, text in contents.items():
            with atomic_write(directory / name) as partial:
                partial.write_text(text, encoding="utf-8")

    @functools.cached_property
    def _special_id_set(self) -> frozenset[int]:
        return frozenset(self._special_ids.values())

    @functools.cached_property
    def _id_to_bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        for text, token_id in self._plain.get_vocab(with_added_tokens=False).items():
            table[token_id] = bytes(_BYTE_OF_CHARACTER[character] for character in text)
        for text, token_id in self._special_ids.items():
            table[token_id] = text.encode()
        return table


class StreamDecoder:
    """Decode ids as they arrive, holding back the bytes of an unfinished character.

    The pieces of `push`, and then `finish`, concatenate to `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, *ids: int) -> str:
        """Return the characters that these ids complete, which may be none."""
        return self._decoder.decode(
            self._tokenizer.decode_bytes(ids, skip_special=self._skip_special)
        )

    def finish(self) -> str:
        """Return what is held back, as U+FFFD, and start afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a Hugging Face directory.

    Raises:
        MissingFileError: the directory has no `tokenizer.json`.
        CorruptFileError: the file is not a byte-level BPE in the `tokenizers` format.
        MismatchError: it is not a GLM tokenizer.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise MissingFileError(
            expected=f"`tokenizer.json` in `{directory}`",
            found="no such file",
            fix="Give the directory of a checkpoint or of a recipe's `tokenizer` stage",
        )
    try:
        text = path.read_text(encoding="utf-8")
        kind = json.loads(text)["model"]["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, f"{type(error).__name__}: {error}") from error
    if kind != "BPE":
        raise _corrupt(path, f"a model of type {kind}")
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise _corrupt(path, str(error)) from error
    return Tokenizer(backend)


def _corrupt(path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(
        expected=f"a byte-level BPE tokenizer in `{path}`",
        found=found[:200],
        fix="Copy the file again, or rerun the stage that writes it",
    )


def _rebuild(serialised: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(serialised))


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each printable stand-in of GPT-2's byte-level scheme denotes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTE_VALUES) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(BYTE_VALUES + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_alphabet()
