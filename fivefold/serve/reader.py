"""From output ids to text as they arrive: stop strings, whole characters, a chat's turn.

A stop string is text and the engine knows ids only, so that the same reader runs twice: in the
engine's thread it decides whether the output ends (`stop_rule`), and beside the connection it makes
the text, without the stop string. Neither depends on where tokens cut the text: what could still
become a stop string is held back, and of several matches the one that is complete first counts.

Surprise: in a chat, stop strings are looked for in the visible answer alone; thinking and the
arguments of calls may contain them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from fivefold.text.event import ContentDelta, Event
from fivefold.text.parse import TokenParser
from fivefold.text.tokenizer import StreamDecoder, Tokenizer
from fivefold.text.tool import Tool


class StopMatcher:
    """Passes text on until one of the stop strings is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for any of `stops`, none of which is empty."""
        self._stops = stops
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text; what follows is swallowed."""

    def push(self, text: str) -> str:
        """Return what is certain to stand before any stop string."""
        if self.matched is not None or not text:
            return ""
        text, self._held = self._held + text, ""
        found = [
            (text.index(stop) + len(stop), text.index(stop), stop)
            for stop in self._stops
            if stop in text
        ]
        if found:
            _, begin, self.matched = min(found)
            return text[:begin]
        held = _held_characters(text, self._stops)
        if held:
            text, self._held = text[:-held], text[-held:]
        return text

    def flush(self) -> str:
        """Return what was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _held_characters(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-count:]) for stop in stops):
            return count
    return 0


class StopReader(Protocol):
    """What `stop_rule` needs of a reader."""

    @property
    def matched(self) -> str | None:
        """The stop string that was found."""
        ...

    def push(self, token: int) -> object:
        """Take the next output id."""
        ...


class TextReader:
    """Reads a completion of plain text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        hidden_ids: Iterable[int] = (),
        skip_special: bool = True,
    ) -> None:
        """Read text that ends before one of `stops`; `hidden_ids` (stop ids) have no text."""
        self._decoder = StreamDecoder(tokenizer, skip_special=skip_special)
        self._matcher = StopMatcher(stops)
        self._hidden = frozenset(hidden_ids)

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""
        return self._matcher.matched

    def push(self, token: int) -> str:
        """Return the text that this id completes."""
        return "" if token in self._hidden else self._matcher.push(self._decoder.push(token))

    def finish(self) -> str:
        """Return what was held back."""
        if self.matched is not None:
            return ""
        return self._matcher.push(self._decoder.finish()) + self._matcher.flush()


class ChatReader:
    """Reads an assistant's turn."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        tools: Sequence[Tool],
        is_thinking: bool,
        hidden_ids: Iterable[int] = (),
    ) -> None:
        """Read a turn after the generation prompt; see `TextReader` and `TokenParser`."""
        self._parser = TokenParser(tokenizer, tools=tools, is_thinking=is_thinking)
        self._matcher = StopMatcher(stops)
        # The turn's own stop tokens have to reach the parser: it ends there.
        self._hidden = frozenset(hidden_ids) - frozenset(tokenizer.stop_ids)

    @property
    def matched(self) -> str | None:
        """The stop string that ended the turn."""
        return self._matcher.matched

    def push(self, token: int) -> list[Event]:
        """Return the events that this id completes, less a stop string and what follows it."""
        if token in self._hidden or self.matched is not None:
            return []
        return self._filter(self._parser.push(token))

    def finish(self) -> list[Event]:
        """Return the events of what was held back; `TurnEnd` is not among them."""
        if self.matched is not None:
            return []
        return [*self._filter(self._parser.finish()[:-1]), *self._flushed()]

    def _filter(self, events: list[Event]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            if self.matched is not None:
                break
            if isinstance(event, ContentDelta):
                text = self._matcher.push(event.text)
                if text:
                    passed.append(ContentDelta(text))
            else:
                # No stop string reaches across a call.
                passed += [*self._flushed(), event]
        return passed

    def _flushed(self) -> list[Event]:
        held = self._matcher.flush()
        return [ContentDelta(held)] if held else []


def stop_rule(reader: StopReader) -> Callable[[Sequence[int]], bool]:
    """Return a rule for `Engine.add` that ends the output where `reader` finds a stop string.

    The reader belongs to the engine's thread from then on.
    """
    seen = 0

    def ends(output: Sequence[int]) -> bool:
        nonlocal seen
        for token in output[seen:]:
            reader.push(token)
        seen = len(output)
        return reader.matched is not None

    return ends
