"""The renderer and the exported jinja agree; prefixes hold; the mask marks the assistant."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from chats import (
    RAW_TOOLS,
    TOOLS,
    chats,
    hostile_words,
    jinja_messages,
    messages,
    plain_words,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fivefold.errors import ConfigError
from fivefold.text.conversation import Exclusion, Message, read_messages
from fivefold.text.special import OBSERVATION, STOP_TOKENS, USER
from fivefold.text.template import (
    generation_segments,
    render,
    render_extension,
    render_prompt,
    render_segments,
    split_forks,
)
from fivefold.text.tokenizer import Tokenizer
from fivefold.text.tool import read_tools

SYSTEM = {"role": "system", "content": "Be brief.\n"}
ASK = {"role": "user", "content": " How many waves? 多少。 "}
THINK = {"role": "assistant", "content": "\n12 \n", "reasoning_content": " Count: 3 x 4.\n"}
ANSWER = {"role": "assistant", "content": "Twelve."}
RESULT = {"role": "observation", "content": '{"waves": 12}'}
COUNT = {"name": "count", "arguments": {"what": "waves", "most": 12, "exact": True}}
CALL = {"role": "assistant", "reasoning_content": "", "tool_calls": [{"function": COUNT}]}
ODD_CHATS = (
    [ASK, {"role": "assistant", "content": None, "reasoning_content": ""}],
    [ASK, {"role": "assistant", "reasoning_content": "Only thought.", "tool_calls": None}, ASK],
    [SYSTEM, ASK, {"role": "tool", "content": "late"}, ANSWER, {"role": "user", "content": ""}],
    [{"role": "developer", "content": [{"type": "text", "text": "Be"}, " brief."]}, ASK],
    [ASK, {"role": "assistant", "tool_calls": [{"name": "stop"}]}],
)
GOLDEN = json.loads(Path(__file__).with_name("golden_chat.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def peer(tokenizer_directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tokenizer_directory)


def text_of(segments: list) -> str:
    return "".join(segment.text for segment in segments)


@pytest.mark.numerics
@given(
    conversation=st.lists(messages(hostile_words), min_size=1, max_size=6),
    enable_thinking=st.sampled_from((None, True, False)),
    clear_thinking=st.sampled_from((None, True, False)),
    has_tools=st.booleans(),
)
def test_exported_template_renders_the_same_text(
    peer: PreTrainedTokenizerBase,
    conversation: list[Message],
    enable_thinking: bool | None,
    clear_thinking: bool | None,
    has_tools: bool,
):
    given: dict[str, Any] = {"enable_thinking": enable_thinking, "clear_thinking": clear_thinking}
    options = {name: value for name, value in given.items() if value is not None}
    rendered = peer.apply_chat_template(
        jinja_messages(conversation),
        tools=RAW_TOOLS if has_tools else None,
        tokenize=False,
        add_generation_prompt=True,
        **options,
    )
    segments = render_segments(
        conversation, tools=TOOLS if has_tools else (), clear_thinking=clear_thinking is not False
    )
    generation = generation_segments(enable_thinking=enable_thinking is not False)
    assert rendered == text_of([*segments, *generation])


@pytest.mark.numerics
@given(
    conversation=st.lists(messages(plain_words), min_size=1, max_size=6),
    enable_thinking=st.booleans(),
    clear_thinking=st.booleans(),
)
def test_exported_template_renders_the_same_ids_of_content_without_markup(
    peer: PreTrainedTokenizerBase,
    tokenizer: Tokenizer,
    conversation: list[Message],
    enable_thinking: bool,
    clear_thinking: bool,
):
    has_hostile_key = any(
        "<arg_key>" in call.arguments for message in conversation for call in message.tool_calls
    )
    raw_tools: list[Any] = (
        [] if has_hostile_key else [{"type": "function", "function": {"name": "f", "x": 1}}]
    )
    if has_hostile_key:
        conversation = [message for message in conversation if not message.tool_calls]
    if not conversation:
        return
    options: dict[str, Any] = {"enable_thinking": enable_thinking, "clear_thinking": clear_thinking}
    rendered = peer.apply_chat_template(
        jinja_messages(conversation),
        tools=raw_tools,
        add_generation_prompt=True,
        return_dict=False,
        **options,
    )
    tools = read_tools(raw_tools)
    assert rendered == render_prompt(conversation, tokenizer, tools=tools, **options)


@pytest.mark.numerics
@pytest.mark.parametrize("raw", ODD_CHATS)
def test_exported_template_takes_the_same_shapes_of_messages(
    peer: PreTrainedTokenizerBase, raw: list
):
    assert peer.apply_chat_template(raw, tokenize=False) == text_of(
        render_segments(read_messages(raw))
    )


@pytest.mark.numerics
@pytest.mark.parametrize(
    "message",
    [
        {"role": "wizard", "content": ""},
        {"role": "user", "content": [1]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": 3},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]},
    ],
)
def test_exported_template_refuses_what_it_cannot_render(
    peer: PreTrainedTokenizerBase, message: dict
):
    with pytest.raises(TemplateError, match=r"Unknown role|text content only|be an object"):
        peer.apply_chat_template([message], tokenize=False)
    with pytest.raises(ConfigError, match=r"messages\[0\]"):
        read_messages([message])


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_render_of_golden_conversations(tokenizer: Tokenizer, case: dict):
    ids, mask = [], []
    for piece in case["pieces"]:
        text = piece.lstrip("!#")
        piece_ids = tokenizer.encode(text)
        if "#" in piece[:2]:
            piece_ids = [tokenizer.id_of(text)]
        ids += piece_ids
        mask += ["!" in piece[:2]] * len(piece_ids)
    rendered = render(
        read_messages(case["messages"]),
        tokenizer,
        tools=read_tools(case.get("tools")),
        **case["options"],
    )
    assert tokenizer.decode(rendered.ids) == tokenizer.decode(ids)
    assert rendered.ids == ids
    assert rendered.loss_mask == mask


@given(conversation=st.lists(messages(hostile_words), max_size=6), count=st.integers(0, 6))
def test_render_of_the_first_messages_is_a_prefix(
    tokenizer: Tokenizer, conversation: list[Message], count: int
):
    options: dict[str, Any] = {"tools": TOOLS, "clear_thinking": False}
    whole = render(conversation, tokenizer, **options)
    part = render(conversation[:count], tokenizer, **options)
    assert whole.ids[: len(part.ids)] == part.ids
    assert whole.loss_mask[: len(part.ids)] == part.loss_mask


@settings(max_examples=50)
@given(conversation=chats(hostile_words), count=st.integers(0, 12))
def test_closed_render_of_the_first_messages_is_a_prefix(
    tokenizer: Tokenizer, conversation: list[Message], count: int
):
    whole = render(conversation, tokenizer, clear_thinking=False, close=True)
    part = render(conversation[:count], tokenizer, clear_thinking=False, close=True)
    assert whole.ids[: len(part.ids)] == part.ids
    assert whole.loss_mask[: len(part.ids)] == part.loss_mask


@given(conversation=st.lists(messages(hostile_words), max_size=6))
def test_render_emits_special_tokens_only_for_structure(
    tokenizer: Tokenizer, conversation: list[Message]
):
    ids = render(conversation, tokenizer, tools=TOOLS, clear_thinking=False).ids
    segments = render_segments(conversation, tools=TOOLS, clear_thinking=False)
    special = [tokenizer.decode([token]) for token in ids if tokenizer.is_special(token)]
    assert special == [segment.text for segment in segments if segment.is_special]
    assert tokenizer.decode(ids) == text_of(segments)
    kinds = [segment.is_special for segment in segments]
    assert all(left or right for left, right in itertools.pairwise(kinds))


@settings(max_examples=50)
@given(conversation=chats(hostile_words))
def test_loss_mask_marks_what_follows_each_generation_prompt(
    tokenizer: Tokenizer, conversation: list[Message]
):
    whole = render(conversation, tokenizer, clear_thinking=False, close=True)
    expected = [False] * len(whole.ids)
    for index, message in enumerate(conversation):
        if message.role == "assistant":
            thinks = message.reasoning_content is not None
            prompt = render_prompt(
                conversation[:index], tokenizer, clear_thinking=False, enable_thinking=thinks
            )
            begin = len(prompt)
            turn = render(
                conversation[: index + 1], tokenizer, clear_thinking=False, close=True
            ).ids
            assert turn == whole.ids[: len(turn)]
            assert tokenizer.decode(turn[-1:]) == (OBSERVATION if message.tool_calls else USER)
            expected[begin : len(turn)] = [True] * (len(turn) - begin)
    assert whole.loss_mask == expected


def test_loss_mask_ends_a_turn_with_its_stop_token(tokenizer: Tokenizer):
    conversation = read_messages([SYSTEM, ASK, CALL, RESULT, ANSWER, ASK])
    rendered = render(conversation, tokenizer, clear_thinking=False, close=True)
    learned = [
        tokenizer.decode([token])
        for token, is_learned in zip(rendered.ids, rendered.loss_mask, strict=True)
        if is_learned
    ]
    stops = [piece for piece in learned if piece in STOP_TOKENS]
    assert stops == ["<|observation|>", "<|user|>"]
    assert "".join(learned) == (
        "</think><tool_call>count<arg_key>what</arg_key><arg_value>waves</arg_value>"
        "<arg_key>most</arg_key><arg_value>12</arg_value>"
        "<arg_key>exact</arg_key><arg_value>true</arg_value></tool_call><|observation|>"
        "Twelve.<|user|>"
    )


def test_turn_whose_thinking_is_dropped_is_not_learned(tokenizer: Tokenizer):
    conversation = read_messages([ASK, THINK, ASK, THINK])
    rendered = render(conversation, tokenizer, close=True)
    learned = [
        token for token, is_own in zip(rendered.ids, rendered.loss_mask, strict=True) if is_own
    ]
    assert tokenizer.decode(learned) == " Count: 3 x 4.\n</think>12<|user|>"


@settings(max_examples=50)
@given(conversation=chats(hostile_words))
def test_forks_learn_each_turn_once_after_its_own_prompt(
    tokenizer: Tokenizer, conversation: list[Message]
):
    forks = [render(fork, tokenizer, close=True) for fork in split_forks(conversation)]
    total = 0
    for index, message in enumerate(conversation):
        if message.role != "assistant":
            continue
        thinks = message.reasoning_content is not None
        prompt = render_prompt(conversation[:index], tokenizer, enable_thinking=thinks)
        turn = render(conversation[: index + 1], tokenizer, close=True).ids
        size = len(turn)
        assert any(
            fork.ids[:size] == turn and all(fork.loss_mask[len(prompt) : size]) for fork in forks
        )
        total += size - len(prompt)
    assert sum(sum(fork.loss_mask) for fork in forks) == total


def test_conversation_without_thinking_does_not_fork():
    conversation = read_messages([ASK, ANSWER, ASK, ANSWER])
    assert split_forks(conversation) == [conversation]
    assert split_forks(read_messages([SYSTEM, ASK])) == []


@settings(max_examples=50)
@given(conversation=chats(hostile_words), enable_thinking=st.booleans(), has_stop=st.booleans())
def test_extension_of_held_ids_is_the_next_prompt(
    tokenizer: Tokenizer, conversation: list[Message], enable_thinking: bool, has_stop: bool
):
    last = max(i for i, message in enumerate(conversation) if message.role != "assistant")
    before = max((i for i in range(last) if conversation[i].role == "assistant"), default=None)
    if before is None:
        return
    held = render(conversation[: before + 1], tokenizer, clear_thinking=False, close=has_stop).ids
    added = render_extension(
        held, conversation[before + 1 : last + 1], tokenizer, enable_thinking=enable_thinking
    )
    assert [*held, *added] == render_prompt(
        conversation[: last + 1],
        tokenizer,
        clear_thinking=False,
        enable_thinking=enable_thinking,
    )


def test_extension_keeps_another_stop_token_that_was_sampled(tokenizer: Tokenizer):
    held = [*tokenizer.encode("12"), tokenizer.pad_id]
    added = render_extension(held, read_messages([{"role": "user", "content": "a"}]), tokenizer)
    assert tokenizer.decode([*held, *added]) == "12<|endoftext|><|user|>a<|assistant|><think>"


@given(
    content=hostile_words.filter(len),
    cuts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=2),
)
def test_excluded_characters_are_in_no_learned_token(
    tokenizer: Tokenizer, content: str, cuts: list[tuple[int, int]]
):
    spans = [(begin, end) for begin, end in cuts if begin < end <= len(content)]
    exclusions = tuple(
        Exclusion(part="content", begin=begin, end=end, reason="wrong") for begin, end in spans
    )
    plain = Message(role="assistant", content=content)
    marked = plain.model_copy(update={"exclusions": exclusions})
    without, rendered = (render([message], tokenizer, close=True) for message in (plain, marked))
    assert rendered.ids == without.ids
    kept = content.strip()
    shift = len(content) - len(content.lstrip())
    owners = [index + shift for index, character in enumerate(kept) for _ in character.encode()]
    place = 0
    for token, was_learned, is_learned in zip(
        rendered.ids, without.loss_mask, rendered.loss_mask, strict=True
    ):
        if was_learned and token not in tokenizer.stop_ids:
            size = len(tokenizer.decode_bytes([token]))
            touched = set(owners[place : place + size])
            is_excluded = any(begin <= index < end for index in touched for begin, end in spans)
            assert is_learned == (not is_excluded)
            place += size
        else:
            assert is_learned == was_learned
    assert place == len(owners)


def test_excluded_characters_are_counted_before_content_is_stripped(tokenizer: Tokenizer):
    exclusion = Exclusion(part="content", begin=3, end=4, reason="wrong")
    message = Message(role="assistant", content=" \n灯1b", exclusions=(exclusion,))
    rendered = render([message], tokenizer, close=True)
    pairs = zip(rendered.ids, rendered.loss_mask, strict=True)
    learned = tokenizer.decode([token for token, is_learned in pairs if is_learned])
    assert learned == "灯b<|user|>"


def test_excluded_call_and_thinking_leave_the_rest_of_the_turn(tokenizer: Tokenizer):
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]
    exclusions = [
        {"part": "tool_calls", "begin": 0, "end": 1, "reason": "no such file"},
        {"part": "reasoning_content", "reason": "loops"},
    ]
    turn = {"role": "assistant", "content": "b", "reasoning_content": "a", "tool_calls": calls}
    message = {**turn, "exclusions": exclusions}

    def learned(message: dict) -> str:
        rendered = render(read_messages([ASK, message]), tokenizer, close=True)
        pairs = zip(rendered.ids, rendered.loss_mask, strict=True)
        return tokenizer.decode([token for token, is_learned in pairs if is_learned])

    assert learned(message) == "</think>b<tool_call>g</tool_call><|observation|>"
    assert learned({**message, "loss": False}) == ""
