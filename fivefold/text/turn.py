"""An assistant's turn as it arrives: a state machine from pieces of it to events.

The machine takes text and markup tokens in turn and tells thinking, content and calls apart:

    REASONING -> CONTENT -> NAME -> (KEY -> BETWEEN -> VALUE -> AFTER)* -> CONTENT

It reads what models write, not only what they should. A call ends thinking that was not closed. A
call with another structure, of an undeclared tool, or cut off becomes the text that it was, where
it stood, and is counted as a fault. A token that means nothing where it stands is text. So every
character of the turn is in the final message or in the markup of it.

Surprise: the machine never looks ahead. A value that can only be a string is passed on as it
comes, any other when it is whole, for its JSON type is not known before. `event` has what it tells,
`parse` the two front ends, for text and for ids.
"""

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fivefold.text.argument import is_always_text, text_to_argument
from fivefold.text.conversation import Message
from fivefold.text.event import (
    ArgumentsDelta,
    CallBroken,
    CallDone,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
    TurnEnd,
)
from fivefold.text.special import (
    ARGUMENT_KEY,
    ARGUMENT_VALUE,
    END_ARGUMENT_KEY,
    END_ARGUMENT_VALUE,
    END_THINK,
    END_TOOL_CALL,
    TOOL_CALL,
)
from fivefold.text.tool import Tool, ToolCall, is_name

CALL_TOKENS = (
    TOOL_CALL,
    END_TOOL_CALL,
    ARGUMENT_KEY,
    END_ARGUMENT_KEY,
    ARGUMENT_VALUE,
    END_ARGUMENT_VALUE,
)
"""The tokens that structure a call."""


class _State(enum.Enum):
    REASONING = enum.auto()
    CONTENT = enum.auto()
    NAME = enum.auto()
    KEY = enum.auto()
    BETWEEN = enum.auto()
    VALUE = enum.auto()
    AFTER = enum.auto()


_FOLLOWING = {
    (_State.NAME, ARGUMENT_KEY): _State.KEY,
    (_State.NAME, END_TOOL_CALL): _State.CONTENT,
    (_State.KEY, END_ARGUMENT_KEY): _State.BETWEEN,
    (_State.BETWEEN, ARGUMENT_VALUE): _State.VALUE,
    (_State.VALUE, END_ARGUMENT_VALUE): _State.AFTER,
    (_State.AFTER, ARGUMENT_KEY): _State.KEY,
    (_State.AFTER, END_TOOL_CALL): _State.CONTENT,
}
"""Where each token leads inside a call; any other breaks it."""
_MOST_NAME_CHARACTERS = 512
"""Of a name with the white space around it."""


class Turn:
    """The state of one turn; `text`, `token` and `end` return the events that they cause."""

    def __init__(self, *, tools: Sequence[Tool] | None, is_thinking: bool) -> None:
        """Begin where the generation prompt ends.

        `is_thinking` says that it opened a thinking block. Calls of other tools than `tools` are
        text; None takes any name, with values that are JSON wherever they can be.
        """
        self._schemas = None if tools is None else {tool.name: tool.parameters for tool in tools}
        self._opened_thinking = is_thinking
        self._state = _State.REASONING if is_thinking else _State.CONTENT
        self._origin = self._state
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._faults: list[str] = []
        self._index = -1
        self._forget_call()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens that mean something now; any other is text."""
        match self._state:
            case _State.CONTENT:
                return (TOOL_CALL,)
            case _State.REASONING:
                return (TOOL_CALL, END_THINK)
            case _State.VALUE:
                return (END_ARGUMENT_VALUE,)  # a value may speak of calls
        # Those of the state that a broken call falls back to are among them.
        return (*CALL_TOKENS, END_THINK)

    def text(self, text: str) -> list[Event]:
        """Take text without markup."""
        if not text:
            return []
        match self._state:
            case _State.REASONING:
                self._reasoning.append(text)
                return [ReasoningDelta(text)]
            case _State.CONTENT:
                self._content.append(text)
                return [ContentDelta(text)]
        self._raw.append(text)
        self._part.append(text)
        match self._state:
            case _State.NAME if self._is_no_name():
                return self._give_up("the name is not that of a declared tool")
            case _State.BETWEEN | _State.AFTER if text.strip():
                return self._give_up("text stands between the arguments")
            case _State.VALUE if self._is_text_value:
                return [self._arguments_delta(_escape(text))]
        return []

    def token(self, token: str) -> list[Event]:
        """Take a markup token."""
        if token not in self.tokens and (self._is_outside_call() or self._state is _State.VALUE):
            return self.text(token)
        if not self._is_outside_call():
            return self._call_token(token)
        if token == TOOL_CALL:
            self._origin = self._state
            self._enter(_State.NAME, token)
        else:
            self._state = _State.CONTENT
        return []

    def end(self) -> list[Event]:
        """Close the turn: what is unfinished becomes text; the last event is `TurnEnd`."""
        events = [] if self._is_outside_call() else self._give_up("the turn ends within the call")
        message = Message(
            role="assistant",
            content="".join(self._content),
            reasoning_content="".join(self._reasoning) if self._opened_thinking else None,
            tool_calls=tuple(self._calls),
        )
        is_thinking = self._state is _State.REASONING
        return [*events, TurnEnd(message, is_thinking, tuple(self._faults))]

    def _call_token(self, token: str) -> list[Event]:
        following = _FOLLOWING.get((self._state, token))
        fault = None if following else f"{token} stands in the wrong place"
        events: list[Event] = []
        if fault is None:
            match self._state:
                case _State.NAME:
                    fault, events = self._settle_name()
                case _State.KEY:
                    fault, events = self._settle_key()
                case _State.VALUE:
                    events = self._settle_value()
        if fault is not None:
            # What broke the call may mean something where the call began.
            return [*self._give_up(fault), *self.token(token)]
        assert following is not None, "a token without a fault leads on"
        if following is _State.CONTENT:
            return [*events, *self._finish_call()]
        self._enter(following, token)
        return events

    def _enter(self, state: _State, token: str) -> None:
        self._state = state
        self._raw.append(token)
        self._part = []

    def _is_no_name(self) -> bool:
        text = "".join(self._part)
        name = text.strip()
        if len(text) > _MOST_NAME_CHARACTERS:
            return True
        if not name or self._schemas is None:
            return bool(name) and not is_name(name)
        return not any(known.startswith(name) for known in self._schemas)

    def _settle_name(self) -> tuple[str | None, list[Event]]:
        """Take the name and begin the call, or return what is wrong with it."""
        name = "".join(self._part).strip()
        if not name:
            return "the call has no name", []
        if self._schemas is not None and name not in self._schemas:
            return "the name is not that of a declared tool", []
        self._name = name
        self._schema = (self._schemas or {}).get(name, {})
        self._index += 1
        return None, [CallStart(self._index, name)]

    def _settle_key(self) -> tuple[str | None, list[Event]]:
        key = "".join(self._part)
        if key in self._arguments:
            return "an argument is given twice", []
        self._key = key
        self._is_text_value = is_always_text(key, self._schema)
        opening = ", " if self._arguments else "{"
        quote = '"' if self._is_text_value else ""
        text = f"{opening}{json.dumps(key, ensure_ascii=False)}: {quote}"
        return None, [self._arguments_delta(text)]

    def _settle_value(self) -> list[Event]:
        value = text_to_argument("".join(self._part), self._key, self._schema)
        self._arguments[self._key] = value
        rest = '"' if self._is_text_value else json.dumps(value, ensure_ascii=False)
        return [self._arguments_delta(rest)]

    def _arguments_delta(self, text: str) -> ArgumentsDelta:
        return ArgumentsDelta(self._index, text)

    def _finish_call(self) -> list[Event]:
        call = ToolCall(name=self._name, arguments=self._arguments)
        closing = self._arguments_delta("}" if self._arguments else "{}")
        self._calls.append(call)
        self._state = _State.CONTENT
        self._forget_call()
        return [closing, CallDone(self._index, call)]

    def _give_up(self, fault: str) -> list[Event]:
        """Turn the call so far back into the text that it was."""
        self._faults.append(fault)
        raw = "".join(self._raw)
        broken = [CallBroken(self._index)] if self._name else []
        self._state = self._origin
        self._forget_call()
        return [*broken, *self.text(raw)]

    def _forget_call(self) -> None:
        self._raw: list[str] = []
        self._part: list[str] = []
        self._name = ""
        self._schema: Mapping[str, Any] = {}
        self._key = ""
        self._is_text_value = False
        self._arguments: dict[str, Any] = {}

    def _is_outside_call(self) -> bool:
        return self._state in (_State.REASONING, _State.CONTENT)


def _escape(text: str) -> str:
    """Return text as it stands within a string of JSON; pieces may be escaped one by one."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
