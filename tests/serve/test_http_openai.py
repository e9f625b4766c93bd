"""The official `openai` client against a live server: text, streams, thinking, tools, scores."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from live_server import Live, byte_tokenizer, chain_model, live_server, random_model
from openai import OpenAI

from fivefold.models.stable import stable_forward, stable_logprobs

USER: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {"type": "object", "properties": {"q": {"type": "integer"}}},
    },
}
CALL = ["<tool_call>", *"find", "<arg_key>", "q", "</arg_key>", "<arg_value>", "7"]
CALL += ["</arg_value>", "</tool_call>", "<|observation|>"]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live_server(random_model()) as live:
        yield live


@pytest.fixture(scope="module")
def caller() -> Iterator[Live]:
    """Thinks "hm", then calls find(q=7)."""
    with live_server(chain_model(["<think>", "h", "m", "</think>", *CALL])) as live:
        yield live


@pytest.fixture(scope="module")
def speaker() -> Iterator[Live]:
    """Thinks "ok", then says "abcdefg" and stops."""
    chain = ["<think>", "o", "k", "</think>", *"abcdefg", "<|user|>"]
    with live_server(chain_model(chain)) as live:
        yield live


def client_of(live: Live) -> OpenAI:
    return OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed(server: Live) -> None:
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_chat_thinks_answers_and_counts(speaker: Live) -> None:
    answer = client_of(speaker).chat.completions.create(model="tiny", messages=USER, temperature=0)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("abcdefg", "stop")
    assert choice.message.reasoning_content == "ok"  # pyright: ignore[reportAttributeAccessIssue]
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens == 2 + 1 + 7 + 1
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 3


def test_the_stream_adds_up_to_the_whole(speaker: Live) -> None:
    client = client_of(speaker)
    options: Any = {"model": "tiny", "messages": USER, "temperature": 0}
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, n=2, stream_options={"include_usage": True}
        )
    )
    whole = client.chat.completions.create(**options)
    for index in range(2):
        picked = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in picked) == "abcdefg"
        thought = [getattr(choice.delta, "reasoning_content", None) or "" for choice in picked]
        assert "".join(thought) == "ok"
        assert picked[0].delta.role == "assistant"
        assert [c.finish_reason for c in picked if c.finish_reason] == ["stop"]
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == 2 * whole.usage.completion_tokens


def test_enable_thinking_false_answers_at_once(speaker: Live) -> None:
    client = client_of(speaker)
    bodies: list[Any] = [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
    ]
    for body in bodies:
        answer = client.chat.completions.create(
            model="tiny", messages=USER, temperature=0, extra_body=body
        )
        message = answer.choices[0].message
        assert message.content == "abcdefg"
        assert not hasattr(message, "reasoning_content")


def test_clear_thinking_decides_about_earlier_turns(server: Live) -> None:
    client = client_of(server)
    messages: Any = [
        *USER,
        {"role": "assistant", "content": "yes", "reasoning_content": "hmmm"},
        *USER,
    ]
    lengths = []
    for clears in (True, False):
        body = {"chat_template_kwargs": {"clear_thinking": clears}, "return_token_ids": True}
        answer = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=1, extra_body=body
        )
        assert answer.usage is not None
        lengths.append(answer.usage.prompt_tokens)
        assert len(answer.prompt_token_ids) == lengths[-1]  # pyright: ignore[reportAttributeAccessIssue]
    assert lengths[1] == lengths[0] + len("hmmm") + 1  # <think>hmmm, where there was </think>


def test_a_declared_tool_is_called(caller: Live) -> None:
    client = client_of(caller)
    options: Any = {"model": "tiny", "messages": USER, "tools": [TOOL], "temperature": 0}
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"q": 7})
    # The call goes back with its result, as a client sends it.
    history: Any = [
        *USER,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "42"},
    ]
    more = client.chat.completions.create(
        **{**options, "messages": history}, extra_body={"max_tokens": 2}
    )
    assert more.usage is not None
    assert more.usage.completion_tokens == 2


def test_a_streamed_call_comes_in_pieces(caller: Live) -> None:
    chunks = client_of(caller).chat.completions.create(
        model="tiny", messages=USER, tools=[TOOL], temperature=0, stream=True
    )
    choices = [chunk.choices[0] for chunk in chunks]
    pieces: list[Any] = [p for choice in choices for p in choice.delta.tool_calls or ()]
    assert len(pieces) > 2
    assert pieces[0].function.name == "find"
    assert pieces[0].id
    assert {piece.index for piece in pieces} == {0}
    arguments = "".join(piece.function.arguments for piece in pieces)
    assert json.loads(arguments) == {"q": 7}
    assert choices[-1].finish_reason == "tool_calls"
    assert not any(choice.delta.content for choice in choices)


@pytest.mark.parametrize("hides", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_an_undeclared_tool_is_text(caller: Live, hides: Any) -> None:
    answer = client_of(caller).chat.completions.create(
        model="tiny",
        messages=USER,
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        **hides,
    )
    message = answer.choices[0].message
    assert message.tool_calls is None
    assert message.content is not None
    assert message.content.startswith("<tool_call>find<arg_key>")


def test_a_call_that_is_cut_off_is_never_shown(caller: Live) -> None:
    chunks = client_of(caller).chat.completions.create(
        model="tiny", messages=USER, tools=[TOOL], temperature=0, stream=True, max_tokens=12
    )
    choices = [chunk.choices[0] for chunk in chunks]
    assert not any(choice.delta.tool_calls for choice in choices)
    thought = [getattr(choice.delta, "reasoning_content", None) or "" for choice in choices]
    shown = "".join(thought + [choice.delta.content or "" for choice in choices])
    assert "<tool_call>find" in shown
    assert choices[-1].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "shown"), [("cde", "ab"), (["x", "de", "fg"], "abc")])
def test_stop_strings_reach_across_tokens(
    speaker: Live, stop: Any, shown: str, stream: bool
) -> None:
    client = client_of(speaker)
    options: Any = {"model": "tiny", "messages": USER, "temperature": 0, "stop": stop}
    if stream:
        chunks = [c.choices[0] for c in client.chat.completions.create(**options, stream=True)]
        text = "".join(choice.delta.content or "" for choice in chunks)
        reason = chunks[-1].finish_reason
    else:
        choice = client.chat.completions.create(**options).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert (text, reason) == (shown, "stop")


def test_a_stop_string_ends_the_engine_too(speaker: Live) -> None:
    answer = client_of(speaker).chat.completions.create(
        model="tiny", messages=USER, temperature=0, stop="bc"
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("ok") + 1 + len("abc")


def test_a_stop_string_in_the_thinking_does_not_count(speaker: Live) -> None:
    answer = client_of(speaker).chat.completions.create(
        model="tiny", messages=USER, temperature=0, stop="ok"
    )
    assert answer.choices[0].message.content == "abcdefg"


def test_logprobs_are_the_models_own(server: Live) -> None:
    answer = client_of(server).chat.completions.create(
        model="tiny",
        messages=USER,
        max_tokens=6,
        seed=3,
        temperature=1.7,
        top_p=0.9,
        logprobs=True,
        top_logprobs=5,
        extra_body={"return_token_ids": True},
    )
    choice: Any = answer.choices[0]
    prompt: list[int] = answer.prompt_token_ids  # pyright: ignore[reportAttributeAccessIssue]
    ids = torch.tensor([[*prompt, *choice.token_ids]])
    with torch.no_grad():
        hidden = stable_forward(random_model(), ids).hidden_BTD
        expected = stable_logprobs(random_model(), hidden, ids)[0, len(prompt) - 1 :]
    entries = choice.logprobs.content
    found = torch.tensor([entry.logprob for entry in entries])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for entry in entries:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 5
        assert tops == sorted(tops, reverse=True)
        assert entry.logprob <= tops[0] + 1e-6


def test_n_answers_of_a_seed_are_those_of_neighbouring_seeds(server: Live) -> None:
    client = client_of(server)
    options: Any = {"model": "tiny", "prompt": "abc", "max_tokens": 12}
    group = client.completions.create(**options, n=3, seed=10)
    alone = [client.completions.create(**options, seed=10 + k).choices[0].text for k in range(3)]
    assert [choice.text for choice in group.choices] == alone
    assert len(set(alone)) == 3


def test_logit_bias_and_truncation_choose(server: Live) -> None:
    client = client_of(server)
    options: Any = {"model": "tiny", "prompt": "abc", "max_tokens": 3}
    letter = byte_tokenizer().encode("z")[0]
    forced = client.completions.create(**options, logit_bias={str(letter): 100})
    assert forced.choices[0].text == "zzz"
    greedy = client.completions.create(**options, temperature=0).choices[0].text
    for body in ({"top_k": 1}, {"min_p": 1.0}):
        assert client.completions.create(**options, extra_body=body).choices[0].text == greedy


def test_completions_take_ids_and_batches_and_echo(server: Live) -> None:
    client, tokenizer = client_of(server), byte_tokenizer()
    texts = ["first", "second one"]
    rows = [tokenizer.prompt_ids(text) for text in texts]
    options: Any = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    by_text = client.completions.create(**options, prompt=texts)
    by_ids = client.completions.create(**options, prompt=rows)
    assert [c.text for c in by_text.choices] == [c.text for c in by_ids.choices]
    scored: Any = client.completions.create(
        model="tiny", prompt=rows, max_tokens=0, echo=True, logprobs=1
    )
    for row, choice, text in zip(rows, scored.choices, texts, strict=True):
        assert choice.text == text
        numbers = choice.logprobs.token_logprobs
        assert numbers[0] is None
        assert len(numbers) == len(row)


def test_a_streamed_completion_returns_ids_once(server: Live) -> None:
    options: Any = {"model": "tiny", "prompt": "abc", "max_tokens": 5, "seed": 1, "logprobs": 2}
    body = {"return_token_ids": True}
    client = client_of(server)
    whole: Any = client.completions.create(**options, extra_body=body).choices[0]
    chunks: list[Any] = list(client.completions.create(**options, extra_body=body, stream=True))
    ids = [i for chunk in chunks for i in getattr(chunk.choices[0], "token_ids", None) or ()]
    assert ids == whole.token_ids
    prompts = [getattr(chunk.choices[0], "prompt_token_ids", None) for chunk in chunks]
    assert [prompt for prompt in prompts if prompt] == [byte_tokenizer().prompt_ids("abc")]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text


def test_the_second_turn_is_cached(server: Live) -> None:
    client = client_of(server)
    messages: Any = [{"role": "user", "content": "a long beginning " * 4}]
    options: Any = {"model": "tiny", "max_tokens": 1}
    first = client.chat.completions.create(**options, messages=messages)
    again = client.chat.completions.create(**options, messages=messages)
    for answer, is_cached in ((first, False), (again, True)):
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert cached is not None
        assert (cached > answer.usage.prompt_tokens - 8) == is_cached


def test_unknown_fields_are_named(server: Live) -> None:
    answer: Any = client_of(server).completions.create(
        model="tiny", prompt="a", max_tokens=1, extra_body={"mirostat": 2}
    )
    assert answer.warnings == ["ignored unknown field 'mirostat'"]
