"""`fivefold chat` at a terminal: lines in, pieces out as they come, thinking dimmed.

Ctrl-C ends a reply, not the conversation; what was said so far stays part of it.
"""

from pathlib import Path
from typing import Literal

from rich.console import Console

from fivefold.models.convert import read_checkpoint
from fivefold.serve.dialogue import Dialogue, is_base_model
from fivefold.serve.engine import Engine
from fivefold.serve.request import SamplingParams
from fivefold.text.tokenizer import load_tokenizer

Mode = Literal["auto", "chat", "continue"]


def chat_at(
    console: Console,
    checkpoint: Path,
    params: SamplingParams,
    *,
    device: str,
    mode: Mode = "auto",
    enable_thinking: bool = True,
) -> None:
    """Talk until an empty line or the end of the input.

    Raises:
        MissingFileError, CorruptFileError, MismatchError: it is not a whole checkpoint.
        ConfigError: the conversation has outgrown the context.
    """
    is_base = mode == "continue" or (mode == "auto" and is_base_model(checkpoint))
    tokenizer = load_tokenizer(checkpoint)
    engine = Engine(read_checkpoint(checkpoint, device=device))
    talk = Dialogue(engine, tokenizer, params, is_base=is_base, enable_thinking=enable_thinking)
    greeting = "This is a base model: it continues your text." if is_base else "A new conversation."
    console.print(f"{greeting} An empty line ends.", highlight=False)
    while line := _read_line(console):
        try:
            for is_thinking, piece in talk.reply(line):
                style = "dim" if is_thinking else None
                console.out(piece, end="", highlight=False, style=style)
        except KeyboardInterrupt:
            console.out(" [stopped]", end="", highlight=False)
        console.out("\n")


def _read_line(console: Console) -> str:
    try:
        return console.input("> ").strip()
    except EOFError:
        return ""
