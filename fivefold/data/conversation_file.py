"""Conversations for training from a directory of JSON lines.

One line is one conversation: `messages` in OpenAI's form, with `reasoning_content`, `loss` and
`exclusions` where they apply, and beside them `tools`, `source` (default: the file's name),
`weight`, `split` and a free `meta`. What is wrong with a line is told with its number; nothing is
repaired and nothing is passed over.

Surprise: a conversation that names no split is assigned one by a hash of its PROMPT, the messages
before the first answer, for rejection sampling writes many answers to one prompt and all of them
have to fall on one side.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import xxhash

from fivefold.config import Config, validate
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError
from fivefold.text.conversation import Message, read_messages, write_messages
from fivefold.text.tool import Tool, read_tools

Split = Literal["train", "heldout"]
_HASH_VALUES = 2**64
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A source's name becomes a file's."""


class _Line(Config):
    """The fields of a line; messages and tools are checked by their own readers."""

    messages: Any
    tools: Any = None
    source: str = pydantic.Field(pattern=_NAME)
    weight: float = pydantic.Field(default=1.0, gt=0, allow_inf_nan=False)
    split: Split | None = None
    meta: dict[str, Any] = pydantic.Field(default_factory=dict)


@dataclass(frozen=True)
class TrainingConversation:
    """A conversation and how it takes part in training."""

    messages: tuple[Message, ...]
    source: str
    """Where it comes from; the unit of mixture weights."""
    tools: tuple[Tool, ...] = ()
    weight: float = 1.0
    """Factor of its tokens' loss, not counted in denominators."""
    split: Split | None = None
    """Trained on, or held out; None: `choose_split` says."""
    place: str = ""
    """File and line, for messages."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the assistant's first turn."""
        first = next(i for i, said in enumerate(self.messages) if said.role == "assistant")
        return self.messages[:first]


def conversation_files(directory: Path) -> list[Path]:
    """Return the `*.jsonl` of a directory, in the order of their names.

    Raises:
        MissingFileError: there are none.
    """
    files = sorted(directory.glob("*.jsonl"))
    if not files:
        raise MissingFileError(
            expected=f"files of conversations, `*.jsonl`, in `{directory}`",
            found="none",
            fix="Write one conversation a line, an object with `messages`",
        )
    return files


def read_conversations(path: Path) -> Iterator[TrainingConversation]:
    """Yield the conversations of one file; empty lines count, but hold none.

    Raises:
        CorruptFileError: a line that is not a JSON object in UTF-8.
        ConfigError: a line with other fields or values, or a conversation that teaches nothing
            because no turn is the assistant's.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _read_line(line, f"{path.name}:{number}", path)


def _read_line(line: bytes, place: str, path: Path) -> TrainingConversation:
    try:
        fields = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError is one
        raise _broken(place, path, f"{type(error).__name__}: {error}") from error
    except RecursionError as error:
        raise _broken(place, path, "JSON nested too deeply") from error
    if not isinstance(fields, dict):
        raise _broken(place, path, f"a {type(fields).__name__}")
    read = validate(_Line, {"source": path.stem, **fields}, where=place)
    messages = read_messages(read.messages, where=f"{place} messages")
    if not any(message.role == "assistant" for message in messages):
        raise ConfigError(
            expected=f"a turn of the assistant in the conversation at {place}",
            found=", ".join(message.role for message in messages) or "no message",
            fix="Take the line out: nothing in it can be learned",
        )
    tools = read_tools(read.tools, where=f"{place} tools")
    return TrainingConversation(messages, read.source, tools, read.weight, read.split, place)


def _broken(place: str, path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(
        expected=f"a JSON object in UTF-8 at {place} of `{path.parent}`",
        found=found[:200],
        fix="Correct that line, or copy the file again if it was cut",
    )


def choose_split(conversation: TrainingConversation, share: float, seed: int) -> Split:
    """Return the split that the conversation names, or that of its prompt: `share` is held out."""
    if conversation.split is not None:
        return conversation.split
    text = json.dumps([seed, *write_messages(conversation.prompt)], sort_keys=True)
    is_heldout = xxhash.xxh3_64_intdigest(text.encode()) < share * _HASH_VALUES
    return "heldout" if is_heldout else "train"
