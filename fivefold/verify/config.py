"""Verifier specs: how an answer is judged, as data that a task file can hold.

A spec is one of six kinds, told apart by `kind`. A JSONL row names one (`"verifier": "maths"`) or
spells it (`"verifier": {"kind": "exact", "ignore_case": true}`); the row's `answer` becomes `gold`.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from fivefold.config import Config, Runtime, validate
from fivefold.errors import ConfigError
from fivefold.text.tool import as_json
from fivefold.verify.number import read_number

AnswerPlace = Literal["content", "last_line", "boxed", "tag", "hashes", "last_number"]
TARGET_PATTERN = r"^.+:[A-Za-z_]\w*$"
"""`module:function` or `path/file.py:function`."""


class _AnswerSpec(Config):
    """Where the answer stands in a turn."""

    answer_in: AnswerPlace = "content"
    r"""All visible content, its last line that is not empty, the last `\boxed{...}`, the last
    `<tag>...</tag>`, what follows the last `####`, or the last number of the content."""
    tag: str = pydantic.Field(default="answer", pattern=r"^[A-Za-z]\w*$")
    """Name of the tag for `answer_in="tag"`."""


class ExactSpec(_AnswerSpec):
    """The answer is this text, white space at the ends and runs of it apart."""

    kind: Literal["exact"] = "exact"
    gold: str = pydantic.Field(pattern=r"\S")
    """The right answer."""
    ignore_case: bool = False
    """Are capitals and small letters the same?"""


class NumberSpec(_AnswerSpec):
    """The answer is this number, however written: `1,234`, `$5.00`, `1/2`, `1e3`, `50%` as 50."""

    kind: Literal["number"] = "number"
    gold: str
    """The right answer."""
    tolerance: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Greatest difference, as a share of the right answer."""

    @pydantic.model_validator(mode="after")
    def _check_gold(self) -> "NumberSpec":
        if read_number(self.gold) is None:
            raise ConfigError(
                expected="a number as the answer of a task with the verifier `number`",
                found=repr(self.gold)[:200],
                fix="Write it as `1234.5` or `1/2`, or choose the verifier `maths` or `exact`",
            )
        return self


class MathsSpec(_AnswerSpec):
    """The answer is this mathematical object; equal forms count (needs the package math-verify)."""

    kind: Literal["maths"] = "maths"
    gold: str = pydantic.Field(pattern=r"\S")
    """The right answer, LaTeX or plain."""
    answer_in: AnswerPlace = "boxed"
    """As in the other kinds; most data sets of mathematics ask for a box."""


class FormatSpec(_AnswerSpec):
    """The turn keeps a form; says nothing about its content being right."""

    kind: Literal["format"] = "format"
    needs_thinking: bool = False
    """Must the thinking block hold text? That it is closed is always required."""
    answer_in: AnswerPlace = "content"
    """Where an answer must be found."""
    is_once: bool = False
    """Must the box, tag or mark of the answer occur once only?"""
    most_content_characters: int | None = pydantic.Field(default=None, gt=0)
    """Longest visible content; None: any."""
    most_thinking_characters: int | None = pydantic.Field(default=None, gt=0)
    """Longest thinking; None: any."""


class FunctionSpec(_AnswerSpec):
    """A Python function of one's own, called as `function(answer, arguments)`.

    It gets the answer's text, empty where the turn gives none, and returns a number, or a number
    and a line of explanation. It runs in a process that can be killed: protection from hanging and
    crashing, not from malice.
    """

    kind: Literal["function"] = "function"
    target: str = pydantic.Field(pattern=TARGET_PATTERN)
    """`module:function` or `path/file.py:function`."""
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    """What the function knows about the task: JSON values."""

    @pydantic.field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            return as_json(arguments)
        except ValueError as error:
            raise ConfigError(
                expected="JSON values as the `arguments` of a reward function",
                found=str(error)[:200],
                fix="Give numbers, text, lists and objects; the function runs in another process",
            ) from error


PartSpec = Annotated[
    ExactSpec | NumberSpec | MathsSpec | FormatSpec | FunctionSpec,
    pydantic.Field(discriminator="kind"),
]


class AllSpec(Config):
    """The product of several specs' values; the first 0 decides, and later parts are not asked.

    No part may be worth less than 0 beside others: an answer of which one is cannot be judged.
    """

    kind: Literal["all"] = "all"
    parts: tuple[PartSpec, ...] = pydantic.Field(min_length=1)
    """Cheap ones first."""


VerifierSpec = Annotated[
    ExactSpec | NumberSpec | MathsSpec | FormatSpec | FunctionSpec | AllSpec,
    pydantic.Field(discriminator="kind"),
]
_KINDS: dict[str, type[Config]] = {
    "exact": ExactSpec,
    "number": NumberSpec,
    "maths": MathsSpec,
    "format": FormatSpec,
    "function": FunctionSpec,
    "all": AllSpec,
}


class VerifierConfig(Config):
    """How much a verifier may use; part of what a run does, for limits change verdicts."""

    workers: Runtime[int] = pydantic.Field(default=1, ge=1)
    """Processes that judge at a time; each starts when it is first needed."""
    limit_seconds: float = pydantic.Field(default=5.0, gt=0)
    """Wall time of one judgement, waiting for a free process not included (math-verify: 5)."""
    start_seconds: float = pydantic.Field(default=60.0, gt=0)
    """Wall time in which a process must have started and imported its function."""
    memory_bytes: int = pydantic.Field(default=2 << 30, ge=64 << 20)
    """Address space of a process; a function that imports torch needs several GiB."""
    most_answer_characters: int = pydantic.Field(default=2000, ge=1)
    """Longest answer that is compared as mathematics; a longer one scores 0."""


def read_spec(document: object, *, gold: str | None = None, where: str) -> VerifierSpec:
    """Check a verifier's name or spelled-out spec, with `gold` for the kinds that have one.

    Raises:
        ConfigError: no such kind, or fields that do not fit it.
    """
    named = {"kind": document} if isinstance(document, str) else document
    if not isinstance(named, Mapping) or not isinstance(named.get("kind"), str):
        raise ConfigError(
            expected=f"`{where}` to be a verifier's name or an object with `kind`",
            found="nothing" if document is None else repr(document)[:200],
            fix=f"Choose one of {', '.join(_KINDS)}",
        )
    kind = _KINDS.get(named["kind"])
    if kind is None:
        near = difflib.get_close_matches(named["kind"], _KINDS, n=1)
        raise ConfigError(
            expected=f"a known verifier in `{where}`",
            found=repr(named["kind"]),
            fix=f"Did you mean `{near[0]}`" if near else f"Choose one of {', '.join(_KINDS)}",
        )
    fields: dict[str, Any] = dict(named)
    if gold is not None and "gold" in kind.model_fields:
        fields.setdefault("gold", gold)
    if kind is AllSpec:
        fields["parts"] = tuple(
            read_spec(part, gold=gold, where=f"{where}.parts[{number}]").model_dump()
            for number, part in enumerate(_parts(fields, where))
        )
    spec = validate(kind, fields, where=where)
    assert isinstance(spec, tuple(_KINDS.values())), "a spec is of a known kind"
    return spec  # pyright: ignore[reportReturnType]


def _parts(fields: Mapping[str, Any], where: str) -> list[Any] | tuple[Any, ...]:
    parts = fields.get("parts")
    if not isinstance(parts, list | tuple):
        raise ConfigError(
            expected=f"`{where}.parts` to be a list of verifiers",
            found="nothing" if parts is None else repr(parts)[:200],
            fix="Give the specs whose values are multiplied",
        )
    return parts
