"""Messages to tokens: GLM's chat format, and which of its tokens an assistant has to learn.

A conversation is rendered as a list of segments, each a special token or plain text. Text of the
prompt and ids come from the same segments, and content is encoded on its own, so that a message
which spells `<|user|>` opens no turn. `chat_template` is the equivalent for other engines.

Format: the chat template of `zai-org/GLM-4.7` and `GLM-5`, which has no line breaks after role
tokens; a turn without thinking is `</think>` alone (`<think></think>` since GLM-5.2). Thinking is
interleaved (before each reply and call since the last user message; the default), preserved
(`clear_thinking=False`: of all turns) and turn-level (`enable_thinking`, chosen for each turn).

Surprise: no token ends a turn. The next role token does, so it is part of what the assistant
learns: `<|observation|>` after calls, `<|user|>` otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fivefold.text.argument import argument_to_text
from fivefold.text.chat_template import CALL_FORM, TOOLS_BEFORE
from fivefold.text.conversation import Conversation, Message
from fivefold.text.mask import Span, excluded_spans, mark_learned
from fivefold.text.special import (
    ARGUMENT_KEY,
    ARGUMENT_VALUE,
    ASSISTANT,
    END_ARGUMENT_KEY,
    END_ARGUMENT_VALUE,
    END_THINK,
    END_TOOL_CALL,
    END_TOOL_RESPONSE,
    GENERATION_MASK,
    MARKUP_TOKENS,
    OBSERVATION,
    START_OF_PIECE,
    STOP_TOKENS,
    SYSTEM,
    THINK,
    TOOL_CALL,
    TOOL_RESPONSE,
    USER,
)
from fivefold.text.tokenizer import Tokenizer
from fivefold.text.tool import Tool, ToolCall


@dataclass(frozen=True)
class Segment:
    """A special token, or a stretch of plain text, of a rendered conversation."""

    text: str
    is_special: bool
    is_learned: bool
    """Does the assistant produce it itself, rather than read it?"""
    excluded: tuple[Span, ...] = ()
    """Characters of the text that are not learned all the same."""


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
    tools: Sequence[Tool] = (),
    clear_thinking: bool = True,
    close: bool = False,
) -> Rendered:
    """Return the ids and the loss mask of a conversation.

    With `clear_thinking=False` the result for the first k messages is a prefix of the result for
    all. The default drops the reasoning of turns before the last user message, as GLM does, and
    does not learn those turns: without their thinking they are not what the assistant said
    (`split_forks` gives each its own sample). `close` adds the token that ends a final assistant
    turn, for the assistant to learn.
    """
    segments = render_segments(
        conversation, tools=tools, clear_thinking=clear_thinking, close=close
    )
    ids: list[int] = []
    loss_mask: list[bool] = []
    for segment in segments:
        piece = _segment_to_ids(segment, tokenizer)
        ids.extend(piece)
        if segment.excluded:
            loss_mask.extend(mark_learned(piece, segment.excluded, segment.text, tokenizer))
        else:
            loss_mask.extend([segment.is_learned] * len(piece))
    return Rendered(ids, loss_mask)


def render_prompt(
    conversation: Conversation,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Tool] = (),
    enable_thinking: bool = True,
    clear_thinking: bool = True,
) -> list[int]:
    """Return the ids from which an engine generates the assistant's next turn."""
    segments = [
        *render_segments(conversation, tools=tools, clear_thinking=clear_thinking),
        *generation_segments(enable_thinking=enable_thinking),
    ]
    return [token for segment in segments for token in _segment_to_ids(segment, tokenizer)]


def render_call_opening(name: str | None, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that open a call of this tool, or of one that the engine is left to name.

    They stand after the thinking: read behind `render_prompt` with `enable_thinking=False`, they
    leave an engine nothing but to go on with the call, and no grammar is needed.
    """
    segments = [_read(TOOL_CALL), *([] if name is None else [_text(name)])]
    return [token for segment in segments for token in _segment_to_ids(segment, tokenizer)]


def render_extension(
    held_ids: Sequence[int],
    messages: Conversation,
    tokenizer: Tokenizer,
    *,
    enable_thinking: bool = True,
) -> list[int]:
    """Return what follows the held ids, which end with a generated turn, up to the next turn.

    A multi-turn rollout appends these to the very ids that were read and sampled; nothing is
    rendered again. The messages are those after that turn. Where it was ended by the role token
    that they begin with, the token is not repeated; after any other ending it is added.
    """
    segments: list[Segment] = []
    before = Message(role="assistant", loss=False)
    for message in messages:
        segments.extend(
            _message_segments(message, before, has_thinking=True, follows_learned=False)
        )
        before = message
    segments.extend(generation_segments(enable_thinking=enable_thinking))
    ids = [token for segment in segments for token in _segment_to_ids(segment, tokenizer)]
    return ids[1:] if held_ids and held_ids[-1] == ids[0] else ids


def split_forks(conversation: Conversation) -> list[tuple[Message, ...]]:
    """Return the prefixes that together learn each assistant turn once, as it was generated.

    For training with the default `clear_thinking`: a user message drops the thinking before it, so
    that a conversation forks there. Turns that an earlier fork learns have `loss=False`.
    """
    forks: list[tuple[Message, ...]] = []
    learned = 0
    for end, message in enumerate([*conversation, None]):
        fresh = conversation[learned:end]
        drops_thinking = message is not None and message.role == "user"
        if message is not None and not (drops_thinking and any(map(_has_thinking, fresh))):
            continue
        if any(said.role == "assistant" for said in fresh):
            known = (said.model_copy(update={"loss": False}) for said in conversation[:learned])
            forks.append((*known, *fresh))
            learned = end
    return forks


def render_segments(
    conversation: Conversation,
    *,
    tools: Sequence[Tool] = (),
    clear_thinking: bool = True,
    close: bool = False,
) -> list[Segment]:
    """Return the conversation as segments, whose texts concatenate to the prompt.

    No two segments of text are neighbours: ids would depend on where they are cut.
    """
    last_user = max(
        (index for index, message in enumerate(conversation) if message.role == "user"), default=-1
    )
    segments = [_read(GENERATION_MASK), _read(START_OF_PIECE), *_tool_segments(tools)]
    before: Message | None = None
    is_learned = False
    for index, message in enumerate(conversation):
        has_thinking = not clear_thinking or index > last_user
        segments.extend(
            _message_segments(
                message, before, has_thinking=has_thinking, follows_learned=is_learned
            )
        )
        is_learned = _learns(message, has_thinking=has_thinking)
        before = message
    if close and before is not None and before.role == "assistant":
        stop = OBSERVATION if before.tool_calls else USER
        segments.append(Segment(stop, is_special=True, is_learned=is_learned))
    return segments


def generation_segments(*, enable_thinking: bool = True) -> list[Segment]:
    """Return what is read just before a generated turn: with thinking opened or closed."""
    return [_read(ASSISTANT), _read(THINK if enable_thinking else END_THINK)]


def _tool_segments(tools: Sequence[Tool]) -> Iterator[Segment]:
    if not tools:
        return
    lines = [argument_to_text(tool.declaration) + "\n" for tool in tools]
    yield _read(SYSTEM)
    yield _text("".join([TOOLS_BEFORE, *lines, CALL_FORM[0]]))
    for piece in CALL_FORM[1:]:
        yield _read(piece) if piece in MARKUP_TOKENS else _text(piece)


def _message_segments(
    message: Message, before: Message | None, *, has_thinking: bool, follows_learned: bool
) -> Iterator[Segment]:
    match message.role:
        case "system":
            yield _read(SYSTEM)
            yield _text(message.content)
        case "user":
            yield _role_token(USER, is_stop=follows_learned)
            yield _text(message.content)
        case "observation":
            if before is None or before.role != "observation":
                yield _role_token(OBSERVATION, is_stop=follows_learned)
            yield _read(TOOL_RESPONSE)
            yield _text(message.content)
            yield _read(END_TOOL_RESPONSE)
        case "assistant":
            # The token that opens or closes thinking is given by the generation prompt.
            keeps_thinking = has_thinking and _has_thinking(message)
            yield from generation_segments(enable_thinking=keeps_thinking)
            is_learned = _learns(message, has_thinking=has_thinking)
            if keeps_thinking:
                yield _own_text(message, "reasoning_content", is_learned)
                yield Segment(END_THINK, is_special=True, is_learned=is_learned)
            yield _own_text(message, "content", is_learned)
            excluded = excluded_spans(message, "tool_calls")
            for index, call in enumerate(message.tool_calls):
                is_excluded = any(begin <= index < end for begin, end in excluded)
                yield from _call_segments(call, is_learned=is_learned and not is_excluded)


def _call_segments(call: ToolCall, *, is_learned: bool) -> Iterator[Segment]:
    def token(text: str) -> Segment:
        return Segment(text, is_special=True, is_learned=is_learned)

    def words(text: str) -> Segment:
        return Segment(text, is_special=False, is_learned=is_learned)

    yield from (token(TOOL_CALL), words(call.name))
    for key, value in call.arguments.items():
        yield from (token(ARGUMENT_KEY), words(key), token(END_ARGUMENT_KEY))
        yield from (token(ARGUMENT_VALUE), words(argument_to_text(value)))
        yield token(END_ARGUMENT_VALUE)
    yield token(END_TOOL_CALL)


def _has_thinking(message: Message) -> bool:
    return message.role == "assistant" and message.reasoning_content is not None


def _learns(message: Message, *, has_thinking: bool) -> bool:
    is_whole = has_thinking or not _has_thinking(message)
    return message.role == "assistant" and message.loss and is_whole


def _role_token(token: str, *, is_stop: bool) -> Segment:
    return Segment(token, is_special=True, is_learned=is_stop and token in STOP_TOKENS)


def _read(token: str) -> Segment:
    return Segment(token, is_special=True, is_learned=False)


def _text(text: str) -> Segment:
    return Segment(text, is_special=False, is_learned=False)


def _own_text(message: Message, part: str, is_learned: bool) -> Segment:
    text = getattr(message, part)
    kept = text.strip() if part == "content" else text
    excluded = ()
    if is_learned:
        shift = text.index(kept)
        excluded = tuple(
            (begin - shift, end - shift) for begin, end in excluded_spans(message, part)
        )
    return Segment(kept, is_special=False, is_learned=is_learned, excluded=excluded)


def _segment_to_ids(segment: Segment, tokenizer: Tokenizer) -> list[int]:
    if segment.is_special:
        return [tokenizer.id_of(segment.text)]
    return tokenizer.encode(segment.text)
