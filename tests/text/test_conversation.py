"""Messages and tools from outside are read whole or refused by name."""

import pytest
from chats import TOOLS, hostile_words, messages
from hypothesis import given
from hypothesis import strategies as st

from fivefold.errors import ConfigError
from fivefold.text.argument import argument_to_text, text_to_argument
from fivefold.text.conversation import Exclusion, Message, read_messages, write_messages
from fivefold.text.tool import read_tools


@given(conversation=st.lists(messages(hostile_words), max_size=4))
def test_written_messages_are_read_back(conversation: list[Message]):
    assert read_messages(write_messages(conversation)) == tuple(conversation)


def test_training_flags_are_read_back():
    exclusion = Exclusion(part="content", begin=1, end=2, reason="wrong")
    message = Message(role="assistant", content="abc", loss=False, exclusions=(exclusion,))
    assert read_messages(write_messages([message])) == (message,)


def test_answer_as_a_client_sends_it_back_is_read():
    (message,) = read_messages(
        [
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "index": 0,
                        "function": {"name": "f", "arguments": ' {"b": 1, "a": "x"} '},
                    },
                    {"id": "d", "type": "function", "function": {"name": "g", "arguments": ""}},
                ],
            }
        ]
    )
    assert [call.id for call in message.tool_calls] == ["c", "d"]
    assert list(message.tool_calls[0].arguments.items()) == [("b", 1), ("a", "x")]
    assert message.tool_calls[1].arguments == {}


def test_unknown_field_names_the_message():
    with pytest.raises(ConfigError, match="reasoning_content"):
        read_messages([{"role": "assistant", "reasoning_contents": "x"}])


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("hello", r"messages\[1\]"),
        ({"content": "x"}, r"messages\[1\]\.role"),
        ({"role": 3, "content": "x"}, r"messages\[1\]\.role"),
        ({"role": "user", "content": {"text": "x"}}, r"messages\[1\]\.content"),
        ({"role": "user", "content": [{"type": "text"}]}, r"messages\[1\]\.content\[0\]"),
        ({"role": "user", "content": "\ud800"}, r"messages\[1\]\.content"),
        ({"role": "user", "content": "", "reasoning_content": "x"}, r"messages\[1\].*assistant"),
        ({"role": "user", "content": "", "audio": {"id": 1}}, r"messages\[1\]\.audio"),
        ({"role": "assistant", "reasoning_content": 1}, r"messages\[1\]\.reasoning_content"),
        ({"role": "assistant", "tool_calls": "f"}, r"messages\[1\]\.tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, r"tool_calls\[0\]\.name"),
        ({"role": "assistant", "tool_calls": [{"name": "a b"}]}, r"tool_calls\[0\]\.name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "args": {}}]}, "args"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "["}]}, "arguments"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[]"}]}, "arguments"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": 0}]}, "arguments"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": NaN}'}]},
            "arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": {1, 2}}}]},
            "arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 100_000}]},
            "arguments",
        ),
        (
            {
                "role": "assistant",
                "content": "ab",
                "exclusions": [{"part": "content", "begin": 1, "end": 3, "reason": "x"}],
            },
            r"messages\[1\].*within the 2",
        ),
        ({"role": "user", "exclusions": [{"part": "content", "reason": "x"}]}, r"messages\[1\]"),
        ({"role": "assistant", "loss": "perhaps"}, r"messages\[1\]\.loss"),
    ],
)
def test_malformed_message_is_refused_at_its_place(message: object, place: str):
    with pytest.raises(ConfigError, match=place) as caught:
        read_messages([{"role": "user", "content": "x"}, message])
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("tools", "place"),
    [
        ({"name": "f"}, "tools"),
        (["f"], r"tools\[0\]"),
        ([{"type": "web_search"}], r"tools\[0\]\.type"),
        ([{"type": "function", "function": {}}], r"tools\[0\]\.function\.name"),
        ([{"name": "f"}, {"name": "f"}], r"tools\[1\]\.name"),
        ([{"name": "f", "parameters": []}], r"tools\[0\]\.parameters"),
        ([{"name": "f", "x": float("inf")}], r"tools\[0\]"),
    ],
)
def test_malformed_tool_is_refused_at_its_place(tools: object, place: str):
    with pytest.raises(ConfigError, match=place):
        read_tools(tools)


def test_tools_are_kept_as_declared():
    declared = [{"function": {"parameters": {"b": 1, "a": 2}, "name": "f"}, "type": "function"}]
    (tool,) = read_tools(declared)
    assert list(tool.declaration) == ["function", "type"]
    assert list(tool.parameters) == ["b", "a"]
    assert read_tools(None) == ()


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, '"x"', '"x"'),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "True", "True"),
        ({"type": "array"}, '["a", 1]', ["a", 1]),
        ({"type": "object"}, '{"a": null}', {"a": None}),
        ({"type": "object"}, "{", "{"),
        ({"type": "object"}, "[" * 100_000, "[" * 100_000),
        ({"type": "object"}, '{"a": "\\ud800"}', '{"a": "\\ud800"}'),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "12", "12"),
        ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "integer"]}, "1.5", "1.5"),
        ({"type": "string", "nullable": True}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "number"}]}, "12", 12),
        ({"oneOf": [{"type": "string"}, {}]}, "[1]", [1]),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "12", "12"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, "auto"]}, "1", 1),
        ({"const": "1"}, "1", "1"),
        ({"$ref": "#/$defs/id"}, "12", "12"),
        ({"$ref": "#/$defs/loop"}, "12", 12),
        ({"$ref": "#/nowhere"}, "12", 12),
        ({}, "12", 12),
        ({}, "a b", "a b"),
        (True, "12", 12),
    ],
)
def test_argument_is_typed_by_its_schema(schema: object, text: str, value: object):
    definitions = {"id": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}}
    found = text_to_argument(text, "a", {"properties": {"a": schema}, "$defs": definitions})
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("parameters", [{}, {"properties": []}, {"properties": {"b": {}}}])
def test_argument_without_a_schema_is_json_where_it_can_be(parameters: dict):
    assert text_to_argument("12", "a", parameters) == 12
    assert text_to_argument("x", "a", parameters) == "x"


def test_argument_is_written_raw_when_it_is_a_string():
    assert argument_to_text("12") == argument_to_text(12) == "12"
    assert argument_to_text({"灯": [True, None]}) == '{"灯": [true, null]}'
    assert TOOLS[0].parameters["properties"]["query"] == {"type": "string"}
