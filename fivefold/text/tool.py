"""Tools: what an assistant may call, and the calls that it makes.

Both come from outside (a request, a data file, a model), in OpenAI's shape: a declaration is
`{"type": "function", "function": {"name", "description", "parameters"}}`, a call is
`{"id", "type": "function", "function": {"name", "arguments"}}`. Here arguments are a JSON object;
OpenAI's string of JSON is parsed on the way in and written on the way out.

Surprise: a declaration is kept as it was given, for GLM's prompt shows that object, with its order
of keys, and not a normalised one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError

NAME_PATTERN = r"^[^\s<>]{1,256}$"
"""A tool's name: no white space and no markup, so that the format can be read back."""


class ToolCall(Config):
    """One call that an assistant makes."""

    name: str = pydantic.Field(pattern=NAME_PATTERN)
    """Which tool."""
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    """A JSON object, in the order in which the arguments were written."""
    id: str | None = None
    """Joins a call with its result in OpenAI's protocol; the model never sees it."""

    @property
    def arguments_json(self) -> str:
        """The arguments as OpenAI's string of JSON."""
        return json.dumps(self.arguments, ensure_ascii=False)


class Tool(Config):
    """One declared tool."""

    name: str = pydantic.Field(pattern=NAME_PATTERN)
    """What a call names."""
    parameters: dict[str, Any] = pydantic.Field(default_factory=dict)
    """JSON schema of the arguments; decides how a call's values are typed."""
    declaration: dict[str, Any]
    """The JSON object that the prompt shows."""


def read_tools(tools: object, *, where: str = "tools") -> tuple[Tool, ...]:
    """Check declared tools from a request or a file; null declares none.

    A declaration may stand in OpenAI's wrapper or bare.

    Raises:
        ConfigError: a declaration without a name, of another type than `function`, with
            parameters that are not an object, or a second tool of the same name.
    """
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise refusal(where, "to be a list of tool declarations", tools)
    read: list[Tool] = []
    for index, declared in enumerate(tools):
        place = f"{where}[{index}]"
        whole = require_object(declared, place)
        if whole.get("type", "function") != "function":
            raise refusal(f"{place}.type", "to be `function`", whole["type"])
        function = whole
        if "function" in whole:
            place = f"{place}.function"
            function = require_object(whole["function"], place)
        name = function.get("name")
        if not isinstance(name, str) or not is_name(name):
            raise refusal(f"{place}.name", "to be a name without spaces", name)
        if any(name == other.name for other in read):
            raise refusal(f"{place}.name", "to differ from the names before it", name)
        parameters = _object_or_nothing(function.get("parameters"), f"{place}.parameters")
        read.append(Tool(name=name, parameters=parameters, declaration=whole))
    return tuple(read)


def read_tool_call(call: object, *, where: str) -> ToolCall:
    """Check one tool call; its arguments may be an object or a string that holds one.

    Raises:
        ConfigError: no name, or arguments that are not a JSON object.
    """
    whole = require_object(call, where)
    place, function = where, whole
    if "function" in whole:
        place = f"{where}.function"
        function = require_object(whole["function"], place)
    known = {"function", "type", "index", "id", "name", "arguments"}
    unknown = sorted((whole.keys() | function.keys()) - known)
    if unknown:
        raise refusal(place, "to hold `name` and `arguments` only", unknown)
    name = function.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise refusal(f"{place}.name", "to be a name without spaces", name)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except ValueError:
            raise refusal(f"{place}.arguments", "to be a JSON object", arguments) from None
    arguments = _object_or_nothing(arguments, f"{place}.arguments")
    call_id = whole.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise refusal(f"{where}.id", "to be a string", call_id)
    return ToolCall(name=name, arguments=arguments, id=call_id)


def write_tool_call(call: ToolCall) -> dict[str, Any]:
    """Return a call in OpenAI's shape, its arguments as a string of JSON."""
    function = {"name": call.name, "arguments": call.arguments_json}
    identity = {} if call.id is None else {"id": call.id}
    return {**identity, "type": "function", "function": function}


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, with a ValueError for all that JSON cannot carry.

    Python's parser also takes NaN, lone surrogates and depths that exhaust its stack; a value with
    one of these cannot be sent on.
    """
    try:
        return as_json(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def as_json(value: object) -> Any:
    """Return the value as plain JSON types, with a ValueError if it has none."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return json.loads(text)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def require_object(value: object, where: str) -> dict[str, Any]:
    """Return a JSON object, or raise the ConfigError that names its place."""
    if isinstance(value, Mapping):
        try:
            return as_json(dict(value))
        except ValueError:
            raise refusal(where, "to hold JSON values only", value) from None
    raise refusal(where, "to be a JSON object", value)


def refusal(where: str, expected: str, found: object) -> ConfigError:
    """Return the error that says what `where` has to be."""
    # A repr of a lone surrogate is an escape, so that the message itself can be printed.
    return ConfigError(
        expected=f"`{where}` {expected}",
        found="nothing" if found is None else repr(found)[:200],
        fix="Correct the message or the tool declaration",
    )


def _object_or_nothing(value: object, where: str) -> dict[str, Any]:
    return {} if value is None else require_object(value, where)


def is_name(name: str) -> bool:
    """Is this a name that a call can carry?"""
    return 0 < len(name) <= 256 and not any(
        character.isspace() or character in "<>" or "\ud800" <= character <= "\udfff"
        for character in name
    )
