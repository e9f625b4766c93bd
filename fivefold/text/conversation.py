"""Messages: what a chat is before it becomes tokens.

The roles are GLM's. Chats from elsewhere call an observation `tool`; `read_messages` maps it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fivefold.config import Config, validate

Role = Literal["system", "user", "assistant", "observation"]


class Message(Config):
    """One message of a conversation."""

    role: Role
    """Who speaks; `observation` is the environment's answer to a tool call."""
    content: str = ""
    """Visible text."""
    reasoning_content: str | None = None
    """Thinking before the content (assistant only); None means that the turn had none."""


Conversation = Sequence[Message]
"""Messages in the order in which they were said."""


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Check messages from a file or a request and return them as a conversation.

    Accepts `tool` for `observation` and null for empty content.

    Raises:
        ConfigError: an unknown role or field, or content that is not text; the message names it.
    """
    read = []
    for index, message in enumerate(messages):
        fields = dict(message)
        if fields.get("role") == "tool":
            fields["role"] = "observation"
        if fields.get("content") is None:
            fields["content"] = ""
        read.append(validate(Message, fields, where=f"messages[{index}]"))
    return tuple(read)
