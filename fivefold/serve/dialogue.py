"""`fivefold chat`: one person, one engine, in this process.

A chat model gets GLM's template, and each turn is appended to the very ids that were read and
sampled, so that all but the new message is found in the prefix tree. A base model continues what is
typed. Which of the two a checkpoint is, is told by the stage that wrote it; a foreign one is taken
for a chat model.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from fivefold.errors import ConfigError
from fivefold.serve.engine import Engine
from fivefold.serve.reader import ChatReader, TextReader
from fivefold.serve.request import Request, SamplingParams
from fivefold.text.conversation import Message
from fivefold.text.event import ContentDelta, ReasoningDelta
from fivefold.text.template import render_extension, render_prompt
from fivefold.text.tokenizer import Tokenizer

_BASE_KINDS = {"PretrainStage", "MidtrainStage", "AdaptDsaStage"}
"""Stages whose models have seen no conversation."""


def is_base_model(checkpoint: Path) -> bool:
    """Was this checkpoint written by a stage before any chat training?"""
    marker = checkpoint.resolve().parent / "finished.json"
    if not marker.is_file():
        return False
    return json.loads(marker.read_text(encoding="utf-8")).get("kind") in _BASE_KINDS


class Dialogue:
    """A chat that goes on; `reply` yields (is it thinking?, text) as it comes."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        is_base: bool,
        enable_thinking: bool = True,
    ) -> None:
        """Talk to an engine that nobody else steps."""
        self._engine, self._tokenizer, self._params = engine, tokenizer, params
        self._is_base, self._thinks = is_base, enable_thinking
        self._held: list[int] = []
        self.cached_tokens = 0
        """Prompt tokens of the last turn that needed no computing."""
        self.prompt_tokens = 0
        """Prompt tokens of the last turn."""

    def reply(self, line: str) -> Iterator[tuple[bool, str]]:
        """Answer a line; closing the iterator early keeps what was said so far.

        Raises:
            ConfigError: the conversation has outgrown the context; it is forgotten.
        """
        prompt = self._prompt(line)
        if len(prompt) >= self._engine.context_tokens:
            self._held = []
            raise ConfigError(
                expected=f"a conversation below {self._engine.context_tokens} tokens, the context",
                found=f"{len(prompt)}",
                fix="Begin anew: what was said is forgotten",
            )
        new: list[int] = []
        request = self._engine.add(
            prompt, self._params, on_token=lambda _, token: new.append(token)
        )
        try:
            yield from self._read(request, new)
        finally:
            if request.finish is None:
                self._engine.abort(request.rid)
            self._held = [*prompt, *request.output]
            self.cached_tokens, self.prompt_tokens = request.cached_tokens, len(prompt)

    def _prompt(self, line: str) -> list[int]:
        if self._is_base:
            return self._tokenizer.prompt_ids(line)
        message = Message(role="user", content=line)
        if not self._held:
            return render_prompt([message], self._tokenizer, enable_thinking=self._thinks)
        more = render_extension(
            self._held, [message], self._tokenizer, enable_thinking=self._thinks
        )
        return [*self._held, *more]

    def _read(self, request: Request, new: list[int]) -> Iterator[tuple[bool, str]]:
        stops = self._engine.model.config.stop_token_ids
        text = TextReader(self._tokenizer, hidden_ids=stops)
        turn = ChatReader(self._tokenizer, tools=(), is_thinking=self._thinks)
        while request.finish is None or new:
            if not new:
                self._engine.step()
                continue
            token = new.pop(0)
            if self._is_base:
                yield False, text.push(token)
                continue
            yield from _pieces(turn.push(token))
        yield from [(False, text.finish())] if self._is_base else _pieces(turn.finish())


def _pieces(events: list) -> Iterator[tuple[bool, str]]:
    for event in events:
        if isinstance(event, ReasoningDelta | ContentDelta):
            yield isinstance(event, ReasoningDelta), event.text
