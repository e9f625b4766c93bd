"""Argument values: text in GLM's format, typed by the tool's JSON schema.

The format writes a string as it is and every other value as JSON (chat template of
`zai-org/GLM-4.7`), so the text alone does not tell the string `12` from the number. The schema of
the argument decides: what may only be a string stays text; what may not be one is JSON; what may be
either is JSON where that gives one of the other types. Text that is not the JSON it should be stays
text: the tool, not the parser, reports a wrong type.
"""

import json
from collections.abc import Mapping
from typing import Any

from fivefold.text.tool import parse_json

_MOST_REFERENCES = 16
"""References that are followed before a schema counts as circular."""
_TEXT = {"string"}


def argument_to_text(value: object) -> str:
    """Return a value as the format writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def text_to_argument(text: str, key: str, parameters: Mapping[str, Any]) -> Any:
    """Return the value that `text` stands for, given the JSON schema of all arguments."""
    types = _types(_schema_of(key, parameters), parameters, _MOST_REFERENCES)
    if types == _TEXT:
        return text
    try:
        value = parse_json(text)
    except ValueError:
        return text
    if types is not None and "string" in types and not types & (_types_of(value) - {"string"}):
        return text
    return value


def is_always_text(key: str, parameters: Mapping[str, Any]) -> bool:
    """Does the schema admit strings only, so that every part of the text is a part of the value?"""
    return _types(_schema_of(key, parameters), parameters, _MOST_REFERENCES) == _TEXT


def _schema_of(key: str, parameters: Mapping[str, Any]) -> object:
    properties = parameters.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    return parameters.get("additionalProperties")


def _types(schema: object, root: Mapping[str, Any], references: int) -> set[str] | None:
    """Return the JSON types that a schema admits; None where it does not say."""
    if not isinstance(schema, Mapping) or not references:
        return None
    if isinstance(schema.get("$ref"), str):
        return _types(_resolve(schema["$ref"], root), root, references - 1)
    declared = schema.get("type")
    if isinstance(declared, str):
        found: set[str] | None = {declared}
    elif isinstance(declared, list):
        found = {name for name in declared if isinstance(name, str)}
    elif isinstance(schema.get("enum"), list):
        found = set().union(*map(_types_of, schema["enum"]))
    elif "const" in schema:
        found = _types_of(schema["const"])
    else:
        found = _combined(schema, root, references)
    return found | {"null"} if found and schema.get("nullable") is True else found


def _combined(
    schema: Mapping[str, Any], root: Mapping[str, Any], references: int
) -> set[str] | None:
    """Return what the alternatives of a schema admit together."""
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list):
            found: set[str] = set()
            for alternative in schema[name]:
                types = _types(alternative, root, references - 1)
                if types is None:
                    return None
                found |= types
            return found
    parts = schema.get("allOf") if isinstance(schema.get("allOf"), list) else []
    known = [_types(part, root, references - 1) for part in parts or []]
    known = [types for types in known if types is not None]
    return set.intersection(*known) if known else None


def _resolve(reference: str, root: Mapping[str, Any]) -> object:
    """Return what a pointer within the schema names (RFC 6901); None for any other."""
    start, _, pointer = reference.partition("/")
    if start != "#" or not pointer:
        return None
    place: object = root
    for part in pointer.split("/"):
        if not isinstance(place, Mapping):
            return None
        place = place.get(part.replace("~1", "/").replace("~0", "~"))
    return place


def _types_of(value: object) -> set[str]:
    """Return the JSON types of a value; a whole number is `integer` and `number`."""
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"integer", "number"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
    return {"object"}
