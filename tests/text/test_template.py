"""The Python renderer and the exported jinja agree; prefixes hold; the mask marks the assistant."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from fivefold.errors import ConfigError
from fivefold.text.conversation import Message, read_messages
from fivefold.text.special import SPECIAL_TOKENS, STOP_TOKENS
from fivefold.text.template import generation_segments, render, render_prompt, render_segments
from fivefold.text.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "Be brief.\n"}
ASK = {"role": "user", "content": " How many waves? 多少。 "}
THINK = {"role": "assistant", "content": "\n12 \n", "reasoning_content": " Count: 3 x 4.\n"}
ANSWER = {"role": "assistant", "content": "Twelve."}
RESULT = {"role": "observation", "content": '{"waves": 12}'}
CONVERSATIONS = (
    [ASK],
    [SYSTEM, ASK],
    [ASK, ANSWER],
    [ASK, THINK],
    [SYSTEM, ASK, THINK, ASK],
    [ASK, THINK, ASK, THINK],
    [ASK, ANSWER, ASK, ANSWER, ASK],
    [ASK, THINK, RESULT, RESULT, THINK, RESULT, ANSWER],
    [SYSTEM, ASK, THINK, RESULT, THINK, ASK, THINK, RESULT, ANSWER],
    [ASK, {"role": "assistant", "content": None, "reasoning_content": ""}],
    [ASK, {"role": "assistant", "reasoning_content": "Only thought."}, ASK],
    [SYSTEM, ASK, {"role": "tool", "content": "late"}, ANSWER, {"role": "user", "content": ""}],
)
plain_text = st.text(alphabet="ab 1\n灯", max_size=8) | st.sampled_from(SPECIAL_TOKENS)
messages = st.builds(
    Message,
    role=st.sampled_from(("system", "user", "assistant", "observation")),
    content=plain_text,
    reasoning_content=st.none() | plain_text,
)


def text_of(segments: list) -> str:
    return "".join(segment.text for segment in segments)


@pytest.mark.numerics
@pytest.mark.parametrize("clear_thinking", [True, False])
@pytest.mark.parametrize("enable_thinking", [True, False])
def test_exported_template_renders_the_same_text_and_ids(
    tokenizer: Tokenizer, tokenizer_directory: Path, enable_thinking: bool, clear_thinking: bool
):
    peer = AutoTokenizer.from_pretrained(tokenizer_directory)
    options = {"enable_thinking": enable_thinking, "clear_thinking": clear_thinking}
    for raw in CONVERSATIONS:
        conversation = read_messages(raw)
        segments = render_segments(conversation, clear_thinking=clear_thinking)
        assert peer.apply_chat_template(raw, tokenize=False, **options) == text_of(segments)
        prompt = peer.apply_chat_template(
            raw, add_generation_prompt=True, return_dict=False, **options
        )
        assert prompt == render_prompt(conversation, tokenizer, **options)


@pytest.mark.numerics
def test_exported_template_without_options_is_the_default(tokenizer_directory: Path):
    peer = AutoTokenizer.from_pretrained(tokenizer_directory)
    for raw in CONVERSATIONS:
        expected = render_segments(read_messages(raw)) + generation_segments()
        rendered = peer.apply_chat_template(raw, tokenize=False, add_generation_prompt=True)
        assert rendered == text_of(expected)


@pytest.mark.numerics
@pytest.mark.parametrize(
    "message", [{"role": "wizard", "content": ""}, {"role": "user", "content": [1]}]
)
def test_exported_template_refuses_what_it_cannot_render(tokenizer_directory: Path, message: dict):
    peer = AutoTokenizer.from_pretrained(tokenizer_directory)
    with pytest.raises(TemplateError, match=r"Unknown role|text content only"):
        peer.apply_chat_template([message], tokenize=False)
    with pytest.raises(ConfigError, match=r"messages\[0\]"):
        read_messages([message])


def test_render_of_a_golden_conversation(tokenizer: Tokenizer):
    conversation = read_messages([SYSTEM, ASK, THINK, RESULT, RESULT, ANSWER])
    assert tokenizer.decode(render(conversation, tokenizer).ids) == (
        "[gMASK]<sop><|system|>Be brief.\n<|user|> How many waves? 多少。 "
        "<|assistant|><think> Count: 3 x 4.\n</think>12"
        '<|observation|><tool_response>{"waves": 12}</tool_response>'
        '<tool_response>{"waves": 12}</tool_response><|assistant|></think>Twelve.'
    )


@given(conversation=st.lists(messages, max_size=6), count=st.integers(0, 6))
def test_render_of_the_first_messages_is_a_prefix(
    tokenizer: Tokenizer, conversation: list[Message], count: int
):
    whole = render(conversation, tokenizer, clear_thinking=False)
    part = render(conversation[:count], tokenizer, clear_thinking=False)
    assert whole.ids[: len(part.ids)] == part.ids
    assert whole.loss_mask[: len(part.ids)] == part.loss_mask


@given(conversation=st.lists(messages, max_size=6))
def test_render_emits_special_tokens_only_for_structure(
    tokenizer: Tokenizer, conversation: list[Message]
):
    ids = render(conversation, tokenizer, clear_thinking=False).ids
    segments = render_segments(conversation, clear_thinking=False)
    special = [tokenizer.decode([token]) for token in ids if tokenizer.is_special(token)]
    assert special == [segment.text for segment in segments if segment.is_special]
    assert tokenizer.decode(ids) == text_of(segments)


@pytest.mark.parametrize("raw", [[ASK, THINK], [ASK, ANSWER], [ASK, THINK, RESULT, THINK]])
def test_loss_mask_marks_what_follows_the_generation_prompt(tokenizer: Tokenizer, raw: list):
    conversation = read_messages(raw)
    rendered = render(conversation, tokenizer, close=True)
    thinking = conversation[-1].reasoning_content is not None
    prompt = render_prompt(conversation[:-1], tokenizer, enable_thinking=thinking)
    assert rendered.ids[: len(prompt)] == prompt
    assert all(rendered.loss_mask[len(prompt) :])
    assert rendered.ids[-1] == tokenizer.id_of("<|endoftext|>")
    if len(raw) == 2:
        assert not any(rendered.loss_mask[: len(prompt)])


def test_loss_mask_ends_a_turn_with_its_stop_token(tokenizer: Tokenizer):
    conversation = read_messages([SYSTEM, ASK, THINK, RESULT, ANSWER, ASK])
    rendered = render(conversation, tokenizer, clear_thinking=False, close=True)
    learned = [
        tokenizer.decode([token])
        for token, is_learned in zip(rendered.ids, rendered.loss_mask, strict=True)
        if is_learned
    ]
    stops = [piece for piece in learned if piece in STOP_TOKENS]
    assert stops == ["<|observation|>", "<|user|>"]
    assert "".join(learned) == " Count: 3 x 4.\n</think>12<|observation|>Twelve.<|user|>"


def test_unknown_field_names_the_message():
    with pytest.raises(ConfigError, match="reasoning_content"):
        read_messages([{"role": "assistant", "reasoning_contents": "x"}])
