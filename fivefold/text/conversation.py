"""Messages: what a chat is before it becomes tokens.

The roles are GLM's; OpenAI's `tool` is GLM's `observation`, its `developer` is `system`. Messages
for training also say what of an assistant's turn is no label: the whole turn (`loss`), or parts of
it, each with its reason (GLM-5 report, section 3.1: erroneous segments of agent trajectories stay
in the context and out of the loss).

Surprise: several keys of OpenAI's messages mean nothing to the format. A client that sends an
answer back also sends its `refusal: null`, so that known keys without a value are let through.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from fivefold.config import Config, validate
from fivefold.errors import ConfigError
from fivefold.text.tool import ToolCall, read_tool_call, refusal, write_tool_call

Role = Literal["system", "user", "assistant", "observation"]
_ROLE_OF = {"tool": "observation", "developer": "system"}
_UNSUPPORTED = ("refusal", "audio", "annotations", "function_call")
"""OpenAI's keys that no GLM format can carry; without a value they are harmless."""


class Exclusion(Config):
    """A part of an assistant's turn that training does not learn."""

    part: Literal["reasoning_content", "content", "tool_calls"]
    """Which field of the message."""
    begin: int = pydantic.Field(default=0, ge=0)
    """First character of the text, or first call, that is excluded."""
    end: int | None = pydantic.Field(default=None, ge=0)
    """First character, or call, after it; None is the end of the part."""
    reason: str = pydantic.Field(min_length=1)
    """Why: for audits of the data."""


class Message(Config):
    """One message of a conversation."""

    role: Role
    """Who speaks; `observation` is the environment's answer to a tool call."""
    content: str = ""
    """Visible text."""
    reasoning_content: str | None = None
    """Thinking before the content (assistant only); None means that the turn had none."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that follow the content (assistant only)."""
    tool_call_id: str | None = None
    """The call that an observation answers; the model does not see it, order tells it."""
    loss: bool = True
    """Does training learn the turn (assistant only)?"""
    exclusions: tuple[Exclusion, ...] = ()
    """Parts of the turn that training does not learn (assistant only)."""

    @pydantic.model_validator(mode="after")
    def _check_parts(self) -> "Message":
        if self.role != "assistant":
            for name in ("reasoning_content", "tool_calls", "exclusions"):
                if getattr(self, name):
                    raise refusal(name, "only in messages of the role `assistant`", self.role)
        for exclusion in self.exclusions:
            length = len(getattr(self, exclusion.part) or ())
            end = length if exclusion.end is None else exclusion.end
            if not exclusion.begin < end <= length:
                raise refusal(
                    f"exclusions ({exclusion.reason})",
                    f"to lie within the {length} characters or calls of `{exclusion.part}`",
                    f"{exclusion.begin} to {end}",
                )
        return self


Conversation = Sequence[Message]
"""Messages in the order in which they were said."""


def read_messages(messages: object, *, where: str = "messages") -> tuple[Message, ...]:
    """Check messages from a file or a request and return them as a conversation.

    Takes GLM's roles or OpenAI's, content as text, as a list of text parts or null, and arguments
    of calls as an object or as a string of JSON.

    Raises:
        ConfigError: an unknown role or field, content that is not text, a call that is not one;
            the message names its place.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise refusal(where, "to be a list of messages", messages)
    return tuple(
        _read_message(message, f"{where}[{index}]") for index, message in enumerate(messages)
    )


def write_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the conversation as OpenAI's messages, which `read_messages` reads back."""
    return [_write_message(message) for message in conversation]


def _read_message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise refusal(where, "to be an object with `role` and `content`", message)
    fields = dict(message)
    for key in _UNSUPPORTED:
        if fields.pop(key, None):
            raise refusal(f"{where}.{key}", "to be empty: the format has no place for it", key)
    fields.pop("name", None)  # who of several users speaks: not part of the format
    role = fields.get("role")
    if isinstance(role, str):
        fields["role"] = _ROLE_OF.get(role, role)
    fields["content"] = _read_content(fields.get("content"), f"{where}.content")
    reasoning = fields.get("reasoning_content")
    if reasoning is not None:
        fields["reasoning_content"] = _require_text(reasoning, f"{where}.reasoning_content")
    calls = fields.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise refusal(f"{where}.tool_calls", "to be a list of calls", calls)
    fields["tool_calls"] = tuple(
        read_tool_call(call, where=f"{where}.tool_calls[{index}]")
        for index, call in enumerate(calls)
    )
    try:
        return validate(Message, fields, where=where)
    except ConfigError as error:
        if where in error.expected:
            raise
        # The message's own check knows its field, not the message's place.
        raise ConfigError(
            expected=f"in `{where}` {error.expected}", found=error.found, fix=error.fix
        ) from error


def _read_content(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return _require_text(content, where)
    if not isinstance(content, Sequence):
        raise refusal(where, "to be text or a list of text parts", content)
    texts = []
    for index, part in enumerate(content):
        text = (
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part
        )
        texts.append(_require_text(text, f"{where}[{index}]"))
    return "".join(texts)


def _require_text(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise refusal(where, "to be text", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refusal(where, "to be Unicode text without lone surrogates", text) from None
    return text


def _write_message(message: Message) -> dict[str, Any]:
    role = "tool" if message.role == "observation" else message.role
    written: dict[str, Any] = {"role": role, "content": message.content}
    if message.reasoning_content is not None:
        written["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        written["tool_calls"] = [write_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if not message.loss:
        written["loss"] = False
    if message.exclusions:
        written["exclusions"] = [exclusion.model_dump() for exclusion in message.exclusions]
    return written
