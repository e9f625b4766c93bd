"""Forced calls through the official `openai` client, on a model that would rather talk."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import Live, byte_tokenizer, chain_model, live_server
from openai import OpenAI

from fivefold.text.conversation import read_messages
from fivefold.text.template import render
from fivefold.text.tool import read_tools

USER: Any = [{"role": "user", "content": "hi"}]
CALL = ["<tool_call>", *"find", "<arg_key>", "q", "</arg_key>", "<arg_value>", "7"]
CALL += ["</arg_value>", "</tool_call>", "<|observation|>"]
OPTIONS: Any = {"model": "tiny", "messages": USER, "temperature": 0}


def tool(name: str) -> Any:
    schema = {"type": "object", "properties": {"q": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """Thinks "ok", then says "abc"; a call that has begun becomes find(q=7)."""
    speech = ["<think>", "o", "k", "</think>", *"abc", "<|user|>"]
    with live_server(chain_model(speech, CALL)) as live:
        yield client_of(live)


def client_of(live: Live) -> OpenAI:
    return OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


FORCES: Any = [
    {"tools": [tool("find")], "tool_choice": "required"},
    {"tools": [tool("find")], "tool_choice": named("find")},
    {"tools": [tool("seek"), tool("find")], "tool_choice": "required"},
    {"tools": [tool("find"), tool("find_all")], "tool_choice": named("find")},
]


@pytest.mark.parametrize("forces", FORCES)
def test_a_forced_call_comes_without_thinking_or_text(client: OpenAI, forces: Any) -> None:
    free = client.chat.completions.create(**OPTIONS, tools=forces["tools"]).choices[0]
    assert (free.message.content, free.finish_reason) == ("abc", "stop")
    choice = client.chat.completions.create(**OPTIONS, **forces).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert not hasattr(choice.message, "reasoning_content")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"q": 7})


@pytest.mark.parametrize("forces", FORCES)
def test_a_streamed_forced_call_is_the_same(client: OpenAI, forces: Any) -> None:
    chunks = client.chat.completions.create(**OPTIONS, **forces, stream=True, n=2)
    choices = [chunk.choices[0] for chunk in chunks]
    for index in range(2):
        picked = [choice for choice in choices if choice.index == index]
        pieces: list[Any] = [p for choice in picked for p in choice.delta.tool_calls or ()]
        assert [piece.function.name for piece in pieces if piece.function.name] == ["find"]
        assert json.loads("".join(piece.function.arguments for piece in pieces)) == {"q": 7}
        assert not any(choice.delta.content for choice in picked)
        assert picked[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("forces", FORCES)
def test_prompt_and_answer_are_the_turn_as_it_is_rendered(client: OpenAI, forces: Any) -> None:
    answer: Any = client.chat.completions.create(
        **OPTIONS, **forces, extra_body={"return_token_ids": True}
    )
    choice = answer.choices[0]
    assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)
    assert answer.usage.completion_tokens == len(choice.token_ids)
    said = choice.message.model_dump(include={"role", "content", "tool_calls"})
    for call in said["tool_calls"]:
        call.pop("custom", None)
    history = read_messages([*USER, said])
    tools = read_tools(forces["tools"])
    whole = render(history, byte_tokenizer(), tools=tools, close=True)
    assert [*answer.prompt_token_ids, *choice.token_ids] == whole.ids


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_against_the_form_is_text(client: OpenAI, stream: bool) -> None:
    """The model goes on with "fin" to "find", which is not declared."""
    forces: Any = {"tools": [tool("fin")], "tool_choice": named("fin"), "stop": "7"}
    if stream:
        chunks = [
            c.choices[0] for c in client.chat.completions.create(**OPTIONS, **forces, stream=True)
        ]
        text, reason = "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason
    else:
        choice = client.chat.completions.create(**OPTIONS, **forces).choices[0]
        text, reason = choice.message.content or "", choice.finish_reason
    assert text == "<tool_call>find<arg_key>q</arg_key><arg_value>"
    assert reason == "stop"


def test_a_forced_call_that_is_cut_off_is_no_call(client: OpenAI) -> None:
    forces: Any = {"tools": [tool("find")], "tool_choice": "required", "max_tokens": 2}
    choice = client.chat.completions.create(**OPTIONS, **forces).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("<tool_call>find<arg_key>q", "length")
    assert choice.message.tool_calls is None
