"""What a parser tells about an assistant's turn while it arrives.

The texts of the deltas concatenate to the fields of the final message, and the arguments of a call
to its JSON.

Surprise: a call may break after it began. Then `CallBroken` says so and its markup follows as text:
a client that must never see half a call waits for `CallDone`, one that wants to show a long
argument while it is written takes `CallStart` and `ArgumentsDelta`, and knows what it risks.
"""

from dataclasses import dataclass

from fivefold.text.conversation import Message
from fivefold.text.tool import ToolCall


@dataclass(frozen=True)
class ReasoningDelta:
    """More thinking."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """More visible text."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call of a declared tool begins."""

    index: int
    """Which of the calls that the turn began, from 0; broken ones count."""
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of a call's arguments: a piece of their JSON, as `ToolCall.arguments_json` writes it."""

    index: int
    text: str


@dataclass(frozen=True)
class CallDone:
    """A whole tool call."""

    index: int
    call: ToolCall


@dataclass(frozen=True)
class CallBroken:
    """A call that began is none after all; its text follows."""

    index: int


@dataclass(frozen=True)
class TurnEnd:
    """The last event: all of the turn."""

    message: Message
    """What was said; only whole calls are among its calls."""
    is_thinking: bool
    """Did the turn end before its thinking did?"""
    faults: tuple[str, ...]
    """Why each malformed call became text."""


Event = ReasoningDelta | ContentDelta | CallStart | ArgumentsDelta | CallDone | CallBroken | TurnEnd
