"""Turns are read back as they were rendered, however they are cut; nothing said is lost."""

import json

import pytest
from chats import TOOLS, assistants, hostile_words, plain_words
from hypothesis import given
from hypothesis import strategies as st

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
from fivefold.text.parse import TextParser, TokenParser, parse_ids, parse_text
from fivefold.text.special import SPECIAL_TOKENS, THINK
from fivefold.text.template import render, render_prompt, render_segments
from fivefold.text.tokenizer import Tokenizer
from fivefold.text.tool import read_tools, write_tool_call
from fivefold.text.turn import CALL_TOKENS

WORDS = [{"name": "say", "parameters": {"additionalProperties": {"type": "string"}}}]
SAY = read_tools(WORDS)
soup = st.lists(
    st.sampled_from((*CALL_TOKENS, "<think>", "</think>", "say", "word", " ", "\n", "<", "</arg_"))
    | st.sampled_from(
        ("<tool_call>say<arg_key>", "</arg_key><arg_value>", "</arg_value></tool_call>")
    )
    | plain_words,
    max_size=14,
).map("".join)
cuts = st.lists(st.integers(0, 200), max_size=12)


def split(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def end_of(events: list[Event]) -> TurnEnd:
    """Check that the events add up to the turn that the last of them holds."""
    end = events[-1]
    assert isinstance(end, TurnEnd)
    assert not any(isinstance(event, TurnEnd) for event in events[:-1])
    reasoning = [event.text for event in events if isinstance(event, ReasoningDelta)]
    content = [event.text for event in events if isinstance(event, ContentDelta)]
    calls = [event for event in events if isinstance(event, CallDone)]
    assert "".join(reasoning) == (end.message.reasoning_content or "")
    assert "".join(content) == end.message.content
    assert tuple(event.call for event in calls) == end.message.tool_calls
    assert all([*reasoning, *content])
    check_streamed_calls(events)
    return end


def check_streamed_calls(events: list[Event]) -> None:
    """Check that each call begins, is written and ends or breaks, one after another."""
    open_call: CallStart | None = None
    written = ""
    started = 0
    for event in events:
        match event:
            case CallStart():
                assert open_call is None
                assert event.index == started
                open_call, written, started = event, "", started + 1
            case ArgumentsDelta():
                assert open_call is not None
                assert event.index == open_call.index
                written += event.text
            case CallDone():
                assert open_call == CallStart(event.index, event.call.name)
                assert written == event.call.arguments_json
                open_call = None
            case CallBroken():
                assert open_call is not None
                assert event.index == open_call.index
                open_call = None
            case _:
                assert open_call is None
    assert open_call is None


def stream_text(pieces: list[str], **options) -> list[Event]:
    parser = TextParser(**options)
    events = [event for piece in pieces for event in parser.push(piece)]
    return [*events, *parser.finish()]


def generated(message: Message, tokenizer: Tokenizer) -> list[int]:
    """The ids that an engine generates to say this message, its stop token included."""
    thinks = message.reasoning_content is not None
    prompt = render_prompt([], tokenizer, enable_thinking=thinks)
    return render([message], tokenizer, close=True).ids[len(prompt) :]


@given(message=assistants(hostile_words), places=cuts)
def test_rendered_turn_is_read_back_from_its_ids(
    tokenizer: Tokenizer, message: Message, places: list[int]
):
    ids = generated(message, tokenizer)
    options = {"tools": TOOLS, "is_thinking": message.reasoning_content is not None}
    parser = TokenParser(tokenizer, **options)
    events: list[Event] = []
    for piece in split("".join(map(chr, ids)), places):
        events += parser.push(*map(ord, piece))
    end = end_of([*events, *parser.finish()])
    assert end.message == message.model_copy(update={"content": message.content.strip()})
    assert not end.faults
    assert not end.is_thinking
    assert parser.is_finished
    assert end == parse_ids(ids, tokenizer, **options)


@given(message=assistants(plain_words), places=cuts)
def test_rendered_turn_is_read_back_from_its_text(message: Message, places: list[int]):
    if any("<arg_key>" in call.arguments for call in message.tool_calls):
        return  # only ids tell a key that spells a token from the token
    thinks = message.reasoning_content is not None
    text = "".join(segment.text for segment in render_segments([message])[4:])
    options = {"tools": TOOLS, "is_thinking": thinks}
    end = end_of(stream_text(split(text, places), **options))
    assert end.message == message.model_copy(update={"content": message.content.strip()})
    assert not end.faults


@given(text=soup, places=cuts, is_thinking=st.booleans(), tools=st.sampled_from((None, (), SAY)))
def test_any_cut_of_a_text_gives_the_same_turn(text: str, places: list[int], is_thinking, tools):
    options = {"tools": tools, "is_thinking": is_thinking}
    whole = parse_text(text, **options)
    assert end_of(stream_text(split(text, places), **options)) == whole
    assert end_of(stream_text(list(text), **options)) == whole


@given(
    ids=st.lists(st.integers(0, 519) | st.integers(370, 395), max_size=30),
    is_thinking=st.booleans(),
)
def test_ids_one_by_one_give_the_same_turn_as_at_once(
    tokenizer: Tokenizer, ids: list[int], is_thinking: bool
):
    parser = TokenParser(tokenizer, is_thinking=is_thinking)
    events = [event for token in ids for event in parser.push(token)]
    end = end_of([*events, *parser.finish()])
    assert end == parse_ids(ids, tokenizer, is_thinking=is_thinking)


@given(text=soup, is_thinking=st.booleans(), tools=st.sampled_from(((), SAY)))
def test_no_character_of_a_text_is_lost(text: str, is_thinking: bool, tools):
    events = stream_text([text], tools=tools, is_thinking=is_thinking)
    end = end_of(events)
    thinking, rest = [], []
    for event in events:
        match event:
            case ReasoningDelta():
                thinking.append(event.text)
            case ContentDelta():
                rest.append(event.text)
            case CallDone():
                segments = render_segments([Message(role="assistant", tool_calls=(event.call,))])
                rest += [segment.text for segment in segments[5:]]

    def bare(pieces: list[str]) -> str:
        return "".join("".join(pieces).split())

    # A call may end thinking in the place of the token.
    ends = [[]] if not is_thinking else [[], ["</think>"]]
    assert bare([text]) in [bare([*thinking, *between, *rest]) for between in ends]
    assert len(end.faults) <= text.count("<tool_call>")


def test_text_is_shown_at_once_unless_it_may_begin_a_token():
    parser = TextParser(is_thinking=False)
    assert parser.push("a <") == [ContentDelta("a ")]
    assert parser.push("b </t") == [ContentDelta("<b </t")]
    assert parser.push("<tool") == []
    assert parser.push("s>") == [ContentDelta("<tools>")]


def test_value_that_is_a_string_is_passed_on_as_it_comes():
    parser = TextParser(tools=SAY, is_thinking=False)
    assert parser.push("<tool_call>say<arg_key>a") == [CallStart(0, "say")]
    assert parser.push("</arg_key><arg_value>") == [ArgumentsDelta(0, '{"a": "')]
    assert parser.push('"\n灯') == [ArgumentsDelta(0, '\\"\\n灯')]
    assert parser.push("</arg_value>") == [ArgumentsDelta(0, '"')]
    assert parser.push("</tool_call>")[0] == ArgumentsDelta(0, "}")


def test_value_that_may_be_json_is_passed_on_when_it_is_whole():
    parser = TextParser(is_thinking=False)
    parser.push("<tool_call>any<arg_key>a</arg_key><arg_value>[1,")
    assert parser.push("2]") == []
    assert parser.push("</arg_value>") == [ArgumentsDelta(0, "[1, 2]")]


def test_call_that_breaks_after_its_beginning_says_so():
    text = "<tool_call>say<arg_key>a</arg_key><arg_value>b"
    events = stream_text([text, "</arg_value> no"], tools=SAY, is_thinking=False)
    assert CallStart(0, "say") in events
    assert events[-3:-1] == [CallBroken(0), ContentDelta(text + "</arg_value> no")]
    end = end_of(events)
    assert end.message.tool_calls == ()


def test_thinking_that_does_not_end_is_reasoning():
    end = parse_text("one <tool_call>say", tools=SAY, is_thinking=True)
    assert end.message.reasoning_content == "one <tool_call>say"
    assert end.message.content == ""
    assert end.is_thinking
    assert end.faults == ("the turn ends within the call",)


def test_call_ends_thinking_that_was_not_closed():
    end = parse_text("one<tool_call>say</tool_call>two", tools=SAY, is_thinking=True)
    assert end.message.reasoning_content == "one"
    assert [call.name for call in end.message.tool_calls] == ["say"]
    assert end.message.content == "two"
    assert not end.is_thinking


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>shout</tool_call>",
        "<tool_call>sa</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>say<arg_key>a</arg_key></tool_call>",
        "<tool_call>say<arg_key>a<arg_value>1</arg_value></tool_call>",
        "<tool_call>say<arg_value>1</arg_value></tool_call>",
        "<tool_call>say<arg_key>a</arg_key>x<arg_value>1</arg_value></tool_call>",
        "<tool_call>say<arg_key>a</arg_key><arg_value>1</arg_value>x</tool_call>",
        "<tool_call>say<arg_key>a</arg_key><arg_value>1</tool_call>",
        "<tool_call>say" + 2 * "<arg_key>a</arg_key><arg_value>1</arg_value>" + "</tool_call>",
        '<tool_call>{"name": "say"}</tool_call>',
        "<tool_call>say</tool_ca",
    ],
)
def test_malformed_call_is_content_with_a_fault(text: str):
    end = parse_text(f"a{text}b", tools=SAY, is_thinking=False)
    assert end.message == Message(role="assistant", content=f"a{text}b")
    assert len(end.faults) == 1
    assert end_of(stream_text(list(f"a{text}b"), tools=SAY, is_thinking=False)) == end


def test_endless_name_is_shown_before_the_turn_ends():
    parser = TextParser(tools=SAY, is_thinking=False)
    assert parser.push("<tool_call>say" + " " * 400) == []
    assert parser.push(" " * 400) == [ContentDelta("<tool_call>say" + " " * 800)]


def test_call_after_a_broken_call_is_read():
    end = parse_text("<tool_call>say<tool_call>say</tool_call>", tools=SAY, is_thinking=False)
    assert end.message.content == "<tool_call>say"
    assert [call.name for call in end.message.tool_calls] == ["say"]
    assert end.faults == ("<tool_call> stands in the wrong place",)


def test_white_space_between_the_parts_of_a_call_is_no_fault():
    text = "<tool_call>say\n<arg_key>a</arg_key>\n<arg_value> x\n</arg_value>\n</tool_call>"
    (call,) = parse_text(text, tools=SAY, is_thinking=False).message.tool_calls
    assert call.arguments == {"a": " x\n"}


def test_value_may_speak_of_calls():
    value = "<tool_call>say</tool_call><arg_key></think>"
    text = f"<tool_call>say<arg_key>a</arg_key><arg_value>{value}</arg_value></tool_call>"
    (call,) = parse_text(text, tools=SAY, is_thinking=False).message.tool_calls
    assert call.arguments == {"a": value}


def test_without_declared_tools_no_call_is_made_and_with_unknown_ones_any():
    text = "<tool_call>any<arg_key>a</arg_key><arg_value>[1, 2]</arg_value></tool_call>"
    assert parse_text(text, tools=(), is_thinking=False).message.content == text
    (call,) = parse_text(text, tools=None, is_thinking=False).message.tool_calls
    assert (call.name, call.arguments) == ("any", {"a": [1, 2]})


def test_arguments_of_a_call_are_sent_as_a_string_of_json():
    text = "<tool_call>any<arg_key>灯</arg_key><arg_value>true</arg_value></tool_call>"
    (call,) = parse_text(text, is_thinking=False).message.tool_calls
    written = write_tool_call(call.model_copy(update={"id": "call_1"}))
    assert written["id"] == "call_1"
    assert json.loads(written["function"]["arguments"]) == {"灯": True}


def test_ids_of_spelled_tokens_are_content(tokenizer: Tokenizer):
    text = "<tool_call>say</tool_call>"
    end = parse_ids(tokenizer.encode(text), tokenizer, is_thinking=False)
    assert end.message.content == text


def test_control_tokens_are_dropped_and_ids_after_a_stop_token_ignored(tokenizer: Tokenizer):
    box, stop = tokenizer.id_of("<|begin_of_box|>"), tokenizer.id_of("<|user|>")
    half = tokenizer.encode("👍")[:2]
    end = parse_ids(
        [*tokenizer.encode("a"), box, *half, stop, *tokenizer.encode("b")],
        tokenizer,
        is_thinking=False,
    )
    assert end.message.content == "a\ufffd"


def test_half_a_character_stands_before_the_token_that_cuts_it(tokenizer: Tokenizer):
    half = tokenizer.encode("👍")[:2]
    end = parse_ids([*half, tokenizer.id_of("</think>")], tokenizer, is_thinking=True)
    assert end.message.reasoning_content == "\ufffd"
    assert end.message.content == ""


def test_long_turn_is_read_whole_from_any_pieces():
    calls = "<tool_call>say<arg_key>a</arg_key><arg_value>b</arg_value></tool_call>" * 3_000
    value = "<tool_call>say<arg_key>a</arg_key><arg_value>" + "<x" * 20_000
    assert len(parse_text(calls, tools=SAY, is_thinking=False).message.tool_calls) == 3_000
    assert parse_text(value, tools=SAY, is_thinking=False).message.content == value
    end = stream_text(list(value), tools=SAY, is_thinking=False)[-1]
    assert isinstance(end, TurnEnd)
    assert end.message.content == value


def test_stray_markup_is_text_where_it_stands(tokenizer: Tokenizer):
    stray = [tokenizer.id_of(token) for token in SPECIAL_TOKENS if token in CALL_TOKENS[1:]]
    end = parse_ids([*stray, tokenizer.id_of(THINK)], tokenizer, is_thinking=False)
    assert end.message.content == tokenizer.decode([*stray, tokenizer.id_of(THINK)])
    assert not end.faults
