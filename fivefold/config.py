"""Frozen configurations, dotted overrides and content hashes.

A config is a frozen pydantic model that rejects unknown keys; each room keeps its own in its
torch-free `config.py`. Overrides are `key.path=value` with JSON literals. The hash of a config is
the identity of a stage: fields marked with `Unhashed` (device, threads, paths of caches) change
where or how fast a stage runs, never what it makes, and stay out of it.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic

from fivefold.errors import ConfigError


class Config(pydantic.BaseModel):
    """Base of all configs: frozen, strict about keys, a docstring under each field for readers."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        defer_build=True,  # validators are made at first use: most commands use few configs
    )


class Unhashed:
    """Marker for `Annotated`: the field does not change what a stage makes."""


T = TypeVar("T")
Runtime = Annotated[T, Unhashed()]
"""`Runtime[int]` is an `int` field that stays out of the config hash."""

ConfigT = TypeVar("ConfigT", bound=pydantic.BaseModel)


def config_to_json(config: pydantic.BaseModel) -> dict[str, Any]:
    """Return the config as JSON-ready values, all fields included."""
    return config.model_dump(mode="json")


def hash_config(config: pydantic.BaseModel) -> str:
    """Return 16 hex digits that identify what the config makes (sha256 of canonical JSON)."""
    text = json.dumps(_hashed_part(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hashed_part(value: object) -> Any:
    if isinstance(value, pydantic.BaseModel):
        dumped = value.model_dump(mode="json")
        kept = {name: dumped[name] for name in dumped.keys() - type(value).model_fields.keys()}
        for name, field in type(value).model_fields.items():
            if not any(isinstance(mark, Unhashed) for mark in field.metadata):
                child = getattr(value, name)
                kept[name] = _hashed_part(child if _holds_config(child) else dumped[name])
        return kept
    if isinstance(value, (list, tuple)):
        return [_hashed_part(item) for item in value]
    if isinstance(value, dict):
        return {key: _hashed_part(item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer():
        # Equal configs have equal hashes: a free-form 10000 and a 10000.0 are the same value.
        return int(value)
    return value


def _holds_config(value: object) -> bool:
    if isinstance(value, pydantic.BaseModel):
        return True
    if isinstance(value, (list, tuple)):
        return any(_holds_config(item) for item in value)
    return isinstance(value, dict) and any(_holds_config(item) for item in value.values())


def apply_overrides(configs: Mapping[str, ConfigT], overrides: Sequence[str]) -> dict[str, ConfigT]:
    """Return the named configs with each `name.key.path=value` applied, validated again.

    Raises:
        ConfigError: an unknown name or key (the nearest known one is named), a value of another
            type, or a combination that the config's own validation refuses.
    """
    changed: dict[str, dict[str, Any]] = {}
    for override in overrides:
        path, separator, literal = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(
                expected="an override of the form `stage.key=value`",
                found=repr(override),
                fix="Write it without spaces around `=`, for example `pretrain.total_tokens=2e6`",
            )
        if keys[0] not in configs:
            raise _unknown(keys[0], list(configs), override)
        document = changed.setdefault(keys[0], configs[keys[0]].model_dump(mode="python"))
        _assign(document, type(configs[keys[0]]), keys, override, parse_literal(literal))
    result = dict(configs)
    for name, document in changed.items():
        result[name] = validate(type(configs[name]), document, where=name)
    return result


def parse_literal(text: str) -> Any:
    """Parse a JSON literal; anything else is a string. `2e6` becomes the int 2000000."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        lowered = {"True": True, "False": False, "None": None}
        return lowered.get(text, text)
    if isinstance(value, float) and value.is_integer() and "." not in text:
        return int(value)
    return value


def validate(kind: type[ConfigT], document: object, *, where: str) -> ConfigT:
    """Build a config from plain values, turning pydantic's report into one ConfigError."""
    try:
        return kind.model_validate(document)
    except pydantic.ValidationError as error:
        reports = error.errors()
        # A misspelt key also leaves its field missing; the spelling is the cause.
        misspelt = (report for report in reports if report["type"] == "extra_forbidden")
        first = next(misspelt, reports[0])
        path = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            annotation: Any = kind
            for part in first["loc"][:-1]:
                annotation = _inside(annotation, str(part))
            inner = _config_of(annotation)
            known = list(inner.model_fields) if inner is not None else []
            raise _unknown(str(first["loc"][-1]), known, path) from error
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            raise cause from error
        found = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise ConfigError(
            expected=f"`{path}` to hold a valid value ({first['msg'].lower()})",
            found=found[:200],
            fix="Correct the value; `fivefold plan RECIPE` checks a config without running it",
        ) from error


def _assign(
    document: dict[str, Any] | list[Any],
    annotation: Any,
    keys: list[str],
    whole: str,
    value: Any,
) -> None:
    """Set the value at `keys[1:]` inside `document`, which is the dump of an `annotation`."""
    if len(keys) == 1:
        raise ConfigError(
            expected=f"a key inside `{keys[0]}`",
            found=repr(whole),
            fix=f"Name the field, for example `{keys[0]}.FIELD=value`",
        )
    key = keys[1]
    kind = _config_of(annotation)
    known = list(kind.model_fields) if kind is not None else []
    if isinstance(document, list):
        known = [str(index) for index in range(len(document))]
    elif isinstance(document, dict) and (kind is None or len(keys) > 2):
        known += [name for name in document if name not in known]
    free_form = isinstance(document, dict) and kind is None and len(keys) == 2
    if key not in known and not free_form:
        raise _unknown(key, known, whole)
    slot: Any = int(key) if isinstance(document, list) else key
    if len(keys) == 2:
        document[slot] = value
        return
    child = document[slot]
    if isinstance(child, tuple):
        child = document[slot] = list(child)
    if not isinstance(child, dict | list):
        raise ConfigError(
            expected=f"`{key}` to be a group of fields in `{whole}`",
            found=f"the single value {child!r}",
            fix=f"Assign `{key}` itself",
        )
    _assign(child, _inside(annotation, key), keys[1:], whole, value)


def _inside(annotation: Any, key: str) -> Any:
    """Return the annotation of what `key` names inside a value of `annotation`; None if unknown."""
    for option in _options(annotation):
        if _config_of(option) is not None and key in option.model_fields:
            return option.model_fields[key].annotation
        items = [item for item in get_args(option) if item is not Ellipsis]
        if get_origin(option) is tuple and key.isdigit():
            return items[min(int(key), len(items) - 1)]
        if get_origin(option) in (dict, list):
            return items[-1]
    return None


def _config_of(annotation: Any) -> type[pydantic.BaseModel] | None:
    """Return the config class among the types that `annotation` admits, if there is one."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, pydantic.BaseModel):
            return option
    return None


def _options(annotation: Any) -> list[Any]:
    """Return the types that `annotation` admits, without `Annotated` marks."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [annotation]


def _unknown(key: str, known: list[str], whole: str) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        choice = f"Did you mean `{near[0]}`"
    elif known:
        choice = f"Known here: {', '.join(sorted(known))}"
    else:
        choice = "Nothing has a name here; assign the whole group as JSON"
    return ConfigError(expected=f"a known key in `{whole}`", found=repr(key), fix=choice)
