"""Random chats: messages of every role, calls typed by a declared schema, hostile content."""

import json
from typing import Any

from hypothesis import strategies as st

from fivefold.text.conversation import Message, write_messages
from fivefold.text.special import SPECIAL_TOKENS
from fivefold.text.tool import ToolCall, read_tools

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find <|user|> pages. 查找",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "items": {"type": "integer"},
                "deep": {"type": ["boolean", "null"]},
                "site": {"anyOf": [{"$ref": "#/$defs/site"}, {"type": "null"}]},
                "<arg_key>": {"type": "number"},
                "filter": {"type": "object"},
                "tags": {"type": "array"},
            },
            "$defs": {"site": {"type": "string"}},
        },
    },
}
STOP = {"name": "stop", "parameters": {}}
RAW_TOOLS: list[Any] = [SEARCH, STOP]
TOOLS = read_tools(RAW_TOOLS)

plain_words = st.text(alphabet='ab 1\n灯👍{}"\\/', max_size=8)
markup = st.sampled_from((*SPECIAL_TOKENS[:40], "<tool_", "</arg_value", "</tools>", "null", "12"))
hostile_words = st.lists(plain_words | markup, max_size=3).map("".join)


def json_values(words: st.SearchStrategy[str]) -> st.SearchStrategy:
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        st.none() | st.booleans() | numbers | words,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
        max_leaves=4,
    )


def calls(words: st.SearchStrategy[str]) -> st.SearchStrategy[ToolCall]:
    """Calls whose values have the types that the schema declares."""
    arguments = st.fixed_dictionaries(
        {},
        optional={
            "query": words,
            "items": st.integers(),
            "deep": st.booleans() | st.none(),
            "site": st.none() | words.filter(lambda text: text.strip() != "null"),
            "<arg_key>": st.floats(allow_nan=False, allow_infinity=False),
            "filter": st.dictionaries(words, json_values(words), max_size=2),
            "tags": st.lists(json_values(words), max_size=2),
        },
    )
    search = st.builds(ToolCall, name=st.just("search"), arguments=arguments)
    return search | st.just(ToolCall(name="stop"))


def assistants(words: st.SearchStrategy[str], *, most_calls: int = 2, least_calls: int = 0):
    return st.builds(
        Message,
        role=st.just("assistant"),
        content=words,
        reasoning_content=st.none() | words,
        tool_calls=st.lists(calls(words), min_size=least_calls, max_size=most_calls).map(tuple),
    )


def messages(words: st.SearchStrategy[str]) -> st.SearchStrategy[Message]:
    role = st.sampled_from(("system", "user", "observation"))
    return st.builds(Message, role=role, content=words) | assistants(words)


def said(role: str, words: st.SearchStrategy[str]) -> st.SearchStrategy[Message]:
    return st.builds(Message, role=st.just(role), content=words)


def exchanges(words: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    """A user's message, calls with their observations, and an answer."""
    observations = st.lists(said("observation", words), min_size=1, max_size=2)
    work = st.tuples(assistants(words, least_calls=1), observations).map(lambda t: [t[0], *t[1]])
    return st.tuples(
        said("user", words), st.lists(work, max_size=2), assistants(words, most_calls=0)
    ).map(lambda parts: [parts[0], *(message for step in parts[1] for message in step), parts[2]])


def chats(words: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    """Whole, well-formed conversations, which end with an answer."""
    return st.tuples(
        st.lists(said("system", words), max_size=1),
        st.lists(exchanges(words), min_size=1, max_size=3),
    ).map(lambda parts: [*parts[0], *(message for turn in parts[1] for message in turn)])


def jinja_messages(conversation: list[Message]) -> list[dict]:
    """OpenAI's messages with arguments as objects, as engines hand them to a template."""
    raw = write_messages(conversation)
    for message in raw:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return raw
