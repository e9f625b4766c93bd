"""Messages to tokens: GLM's chat format, and which of its tokens an assistant has to learn.

A conversation is rendered as a list of segments, each a special token or plain text. Text of the
prompt and ids come from the same segments, and content is encoded on its own, so that a message
which spells `<|user|>` opens no turn. `chat_template` is the equivalent for other engines.
Format: the chat template of `zai-org/GLM-4.7` and `GLM-5` (no line breaks after role tokens).

Surprise: no token ends a turn. The next role token does, so it is part of what the assistant
learns; a conversation that ends with the assistant is closed by `<|endoftext|>` for training.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fivefold.text.conversation import Conversation, Message
from fivefold.text.special import (
    ASSISTANT,
    END_OF_TEXT,
    END_THINK,
    END_TOOL_RESPONSE,
    GENERATION_MASK,
    OBSERVATION,
    START_OF_PIECE,
    STOP_TOKENS,
    SYSTEM,
    THINK,
    TOOL_RESPONSE,
    USER,
)
from fivefold.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Segment:
    """A special token, or a stretch of plain text, of a rendered conversation."""

    text: str
    is_special: bool
    is_learned: bool
    """Does the assistant produce it itself, rather than read it?"""


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens."""

    ids: list[int]
    """Token ids."""
    loss_mask: list[bool]
    """For each id, is it the assistant's own: a label in training?"""


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    *,
    clear_thinking: bool = True,
    close: bool = False,
) -> Rendered:
    """Return the ids and the loss mask of a conversation.

    With `clear_thinking=False` the result for the first k messages is a prefix of the result for
    all; the default drops the reasoning of turns before the last user message, as GLM does.
    `close` ends it with `<|endoftext|>`, which the assistant learns when it speaks last.
    """
    ids: list[int] = []
    loss_mask: list[bool] = []
    for segment in render_segments(conversation, clear_thinking=clear_thinking, close=close):
        piece = _segment_to_ids(segment, tokenizer)
        ids.extend(piece)
        loss_mask.extend([segment.is_learned] * len(piece))
    return Rendered(ids, loss_mask)


def render_prompt(
    conversation: Conversation,
    tokenizer: Tokenizer,
    *,
    enable_thinking: bool = True,
    clear_thinking: bool = True,
) -> list[int]:
    """Return the ids from which an engine generates the assistant's next turn."""
    segments = [
        *render_segments(conversation, clear_thinking=clear_thinking),
        *generation_segments(enable_thinking=enable_thinking),
    ]
    return [token for segment in segments for token in _segment_to_ids(segment, tokenizer)]


def render_segments(
    conversation: Conversation, *, clear_thinking: bool = True, close: bool = False
) -> list[Segment]:
    """Return the conversation as segments, whose texts concatenate to the prompt."""
    last_user = max(
        (index for index, message in enumerate(conversation) if message.role == "user"), default=-1
    )
    segments = [_read(GENERATION_MASK), _read(START_OF_PIECE)]
    before: Message | None = None
    for index, message in enumerate(conversation):
        keeps_thinking = not clear_thinking or index > last_user
        segments.extend(_message_segments(message, before, keeps_thinking=keeps_thinking))
        before = message
    if close:
        segments.append(_role_token(END_OF_TEXT, before))
    return segments


def generation_segments(*, enable_thinking: bool = True) -> list[Segment]:
    """Return what is read just before a generated turn: with thinking opened or closed."""
    return [_read(ASSISTANT), _read(THINK if enable_thinking else END_THINK)]


def _message_segments(
    message: Message, before: Message | None, *, keeps_thinking: bool
) -> Iterator[Segment]:
    match message.role:
        case "system":
            yield _role_token(SYSTEM, before)
            yield _text(message.content)
        case "user":
            yield _role_token(USER, before)
            yield _text(message.content)
        case "observation":
            if before is None or before.role != "observation":
                yield _role_token(OBSERVATION, before)
            yield _read(TOOL_RESPONSE)
            yield _text(message.content)
            yield _read(END_TOOL_RESPONSE)
        case "assistant":
            # The token that opens or closes thinking is given by the generation prompt.
            if keeps_thinking and message.reasoning_content is not None:
                yield from generation_segments(enable_thinking=True)
                yield _text(message.reasoning_content, is_learned=True)
                yield Segment(END_THINK, is_special=True, is_learned=True)
            else:
                yield from generation_segments(enable_thinking=False)
            yield _text(message.content.strip(), is_learned=True)


def _role_token(token: str, before: Message | None) -> Segment:
    ends_turn = before is not None and before.role == "assistant" and token in STOP_TOKENS
    return Segment(token, is_special=True, is_learned=ends_turn)


def _read(token: str) -> Segment:
    return Segment(token, is_special=True, is_learned=False)


def _text(text: str, *, is_learned: bool = False) -> Segment:
    return Segment(text, is_special=False, is_learned=is_learned)


def _segment_to_ids(segment: Segment, tokenizer: Tokenizer) -> list[int]:
    if segment.is_special:
        return [tokenizer.id_of(segment.text)]
    return tokenizer.encode(segment.text)
