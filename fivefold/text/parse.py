"""Reading an assistant's turn, from ids or from text, whole or piece by piece.

From ids, only a special token is markup: content that spells `<tool_call>` is content, and whatever
`template` renders is read back. From text, which is all that some endpoints give, the spelling is
all there is. Both feed the machine of `turn`; the result does not depend on how the turn was cut.

Surprise: the beginning of a token is held back until it is one or is not, so that no half of a tag
is ever shown; only tokens that mean something at that place are waited for.
"""

from collections.abc import Iterable, Sequence

from fivefold.text.event import Event, TurnEnd
from fivefold.text.special import MARKUP_TOKENS, STOP_TOKENS
from fivefold.text.tokenizer import StreamDecoder, Tokenizer
from fivefold.text.tool import Tool
from fivefold.text.turn import Turn


class TextParser:
    """Parse a turn from pieces of its text."""

    def __init__(self, *, tools: Sequence[Tool] | None = None, is_thinking: bool) -> None:
        """Begin after the generation prompt; see `Turn` for the arguments."""
        self._turn = Turn(tools=tools, is_thinking=is_thinking)
        self._held = ""

    def push(self, text: str) -> list[Event]:
        """Return the events that this piece completes."""
        text, self._held = self._held + text, ""
        events: list[Event] = []
        place = 0
        while place < len(text):
            begin, token = _find_token(text, place, self._turn.tokens)
            events += self._turn.text(text[place:begin])
            if token is None:
                self._held = text[begin:]
                break
            events += self._turn.token(token)
            place = begin + len(token)
        return events

    def finish(self) -> list[Event]:
        """Return the events of what was held back, and the turn's end."""
        held, self._held = self._held, ""
        return [*self._turn.text(held), *self._turn.end()]


class TokenParser:
    """Parse a turn from its ids, as an engine generates them."""

    def __init__(
        self, tokenizer: Tokenizer, *, tools: Sequence[Tool] | None = None, is_thinking: bool
    ) -> None:
        """Begin after the generation prompt; see `Turn` for the arguments."""
        self._tokenizer = tokenizer
        self._turn = Turn(tools=tools, is_thinking=is_thinking)
        self._decoder = StreamDecoder(tokenizer)
        self.is_finished = False
        """Has a stop token ended the turn? Ids after it are ignored."""

    def push(self, *ids: int) -> list[Event]:
        """Return the events that these ids complete."""
        events: list[Event] = []
        for token_id in ids:
            if self.is_finished:
                break
            if not self._tokenizer.is_special(token_id):
                events += self._turn.text(self._decoder.push(token_id))
                continue
            events += self._turn.text(self._decoder.finish())
            token = self._tokenizer.decode([token_id])
            if token in MARKUP_TOKENS:
                events += self._turn.token(token)
            # Other special tokens are no part of what was said.
            self.is_finished = token in STOP_TOKENS
        return events

    def finish(self) -> list[Event]:
        """Return the events of what was held back, and the turn's end."""
        return [*self._turn.text(self._decoder.finish()), *self._turn.end()]


def parse_text(text: str, *, tools: Sequence[Tool] | None = None, is_thinking: bool) -> TurnEnd:
    """Return the whole turn that a text is."""
    parser = TextParser(tools=tools, is_thinking=is_thinking)
    return _last([*parser.push(text), *parser.finish()])


def parse_ids(
    ids: Iterable[int],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Tool] | None = None,
    is_thinking: bool,
) -> TurnEnd:
    """Return the whole turn that generated ids are; a stop token may end them."""
    parser = TokenParser(tokenizer, tools=tools, is_thinking=is_thinking)
    return _last([*parser.push(*ids), *parser.finish()])


def _last(events: list[Event]) -> TurnEnd:
    end = events[-1]
    assert isinstance(end, TurnEnd), "a parser's last event is the turn's end"
    return end


def _find_token(text: str, place: int, tokens: Sequence[str]) -> tuple[int, str | None]:
    """Return where the next token stands, and which; or where one may begin at the end, and None.

    A token that text before it robs of its meaning is found all the same: `Turn` takes it as text.
    """
    begin = text.find("<", place)
    while begin >= 0:
        for token in tokens:
            if text.startswith(token, begin):
                return begin, token
            if len(text) - begin < len(token) and token.startswith(text[begin:]):
                return begin, None
        begin = text.find("<", begin + 1)
    return len(text), None
