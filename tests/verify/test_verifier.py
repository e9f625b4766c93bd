"""Verdicts: the state tables of every kind of spec, and counts that lose nothing."""

import asyncio
import importlib.util
import itertools
import math
from pathlib import Path

import pytest

from fivefold.config import hash_config
from fivefold.errors import ConfigError
from fivefold.text.event import TurnEnd
from fivefold.text.parse import parse_text
from fivefold.verify.answer import find_answer, find_boxes
from fivefold.verify.config import (
    AllSpec,
    AnswerPlace,
    ExactSpec,
    FormatSpec,
    FunctionSpec,
    MathsSpec,
    NumberSpec,
    VerifierConfig,
    VerifierSpec,
    read_spec,
)
from fivefold.verify.extra import MissingPackageError
from fivefold.verify.maths import compare_forms
from fivefold.verify.verdict import Verdict, infra, invalid, scored
from fivefold.verify.verifier import Verifier

REWARD = str(Path(__file__).with_name("reward.py"))
UNREADABLE = (
    r"\frac{1}{",
    r"\sqrt{",
    r"\begin{cases} x=1 \\ y=2 \end{cases}",
    r"\begin{cases} x=1 \\ y=2",
    r"x=1 \\ y=2 \end{cases}",
    r"\frac{1}{2}}",
)
"""Answers that math-verify cannot read; from some it would pick the 2."""


def turn(text: str, *, is_thinking: bool = False) -> TurnEnd:
    return parse_text(text, is_thinking=is_thinking)


def function(name: str, **arguments: object) -> FunctionSpec:
    return FunctionSpec(target=f"{REWARD}:{name}", arguments=arguments)


@pytest.fixture(scope="module")
def verifier():
    with Verifier(VerifierConfig(limit_seconds=1.0, memory_bytes=1 << 30)) as verifier:
        yield verifier


@pytest.mark.parametrize("state", ["scored", "invalid", "infra"])
@pytest.mark.parametrize("value", [0.0, 1.0, None, math.nan, math.inf, 1.1e18])
def test_value_and_state_go_together(value: float | None, state) -> None:
    is_right = (value in (0.0, 1.0)) == (state == "scored") and value in (0.0, 1.0, None)
    if is_right:
        assert Verdict(value, state, "").value == value
    else:
        with pytest.raises(AssertionError):
            Verdict(value, state, "")


@pytest.mark.parametrize(
    ("spec", "text", "value"),
    [
        (ExactSpec(gold="k d  f"), " k d f\n", 1),
        (ExactSpec(gold="k d f"), "kdf", 0),
        (ExactSpec(gold="Yes"), "yes", 0),
        (ExactSpec(gold="Yes", ignore_case=True), "YES", 1),
        (ExactSpec(gold="b", answer_in="tag"), "<answer>a</answer> no, <answer>b</answer>", 1),
        (ExactSpec(gold="b", answer_in="tag"), "<answer>b", 0),
        (
            ExactSpec(gold="b", answer_in="tag", tag="final"),
            "<answer>a</answer><final>b</final>",
            1,
        ),
        (ExactSpec(gold="end", answer_in="last_line"), "begin\n end \n\n", 1),
        (NumberSpec(gold="1234"), "$1,234.00", 1),
        (NumberSpec(gold="1234"), "about 1234", 0),
        (NumberSpec(gold="1234", answer_in="last_number"), "12 and so about 1,234.", 1),
        (NumberSpec(gold="18", answer_in="hashes"), "16 + 2\n#### 18", 1),
        (NumberSpec(gold="18", answer_in="boxed"), r"\boxed{17} or rather \boxed{18}", 1),
        (NumberSpec(gold="100", tolerance=0.01), "101", 1),
        (NumberSpec(gold="100", tolerance=0.01), "101.1", 0),
        (NumberSpec(gold="-100", tolerance=0.01), "-99", 1),
        (MathsSpec(gold=r"\frac12"), r"\boxed{\frac{1}{2}}", 1),
        (MathsSpec(gold="3"), r"\boxed{4}", 0),
        (MathsSpec(gold="3"), "3", 0),
        (MathsSpec(gold="3"), rf"\boxed{{{'3' * 3000}}}", 0),
        (FormatSpec(), "anything", 1),
        (FormatSpec(answer_in="boxed", is_once=True), r"\boxed{1}", 1),
        (FormatSpec(answer_in="boxed", is_once=True), r"\boxed{1}\boxed{2}", 0),
        (FormatSpec(answer_in="boxed"), "1", 0),
        (FormatSpec(most_content_characters=3), "1234", 0),
        (AllSpec(parts=(FormatSpec(), ExactSpec(gold="a"))), "a", 1),
        (AllSpec(parts=(FormatSpec(), ExactSpec(gold="a"))), "b", 0),
    ],
)
def test_rules_score(verifier: Verifier, spec: VerifierSpec, text: str, value: float) -> None:
    verdict = verifier.verify(turn(text), spec)
    assert (verdict.state, verdict.value) == ("scored", value), verdict


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("1 + 1</think>2", None),
        ("1 + 1", "thinking is not closed"),
        ("</think>2", "no thinking"),
        ("1 + 1</think>", "no answer"),
        ("1 + 1 is 2 as all know</think>2", "thinking too long"),
        ("1<tool_call>f<arg_key>", "a tool call is malformed"),
    ],
)
def test_form_of_thinking(verifier: Verifier, text: str, broken: str | None) -> None:
    spec = FormatSpec(needs_thinking=True, most_thinking_characters=10)
    verdict = verifier.verify(turn(text, is_thinking=True), spec)
    assert verdict.value == float(broken is None)
    assert (broken or "keeps the form") in verdict.detail


def test_answer_within_thinking_does_not_count(verifier: Verifier) -> None:
    spec = NumberSpec(gold="2", answer_in="boxed")
    assert verifier.verify(turn(r"\boxed{2}</think>hm", is_thinking=True), spec).value == 0
    verdict = verifier.verify(turn(r"\boxed{2}", is_thinking=True), spec)
    assert (verdict.value, "thinking is not closed" in verdict.detail) == (0, True)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (r"\boxed{\frac{1}{2}} \fbox{b}", [r"\frac{1}{2}", "b"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{a \boxed{b}} c", [r"a \boxed{b}"]),
        (r"\boxed{a} \boxed{b", ["a"]),
        (r"\boxed {a}", ["a"]),
        (r"\boxed 5", []),
    ],
)
def test_boxes_are_closed_by_their_own_brace(text: str, boxes: list[str]) -> None:
    assert find_boxes(text) == boxes


def test_empty_box_is_no_answer() -> None:
    assert find_answer(turn(r"\boxed{3} \boxed{ }"), "boxed", "answer") == "3"
    assert find_answer(turn(r"\boxed{ }"), "boxed", "answer") is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (function("length", wanted=4), scored(0.5, "")),
        (function("explained"), scored(0.5, "half of ab")),
        (function("numpy_scalar"), scored(0.25, "")),
        (function("returns", what=True), scored(1, "")),
        (function("returns", what=-2), scored(-2, "")),
        (function("returns", what=None), invalid("None, no number of at most 1e+18")),
        (function("returns", what="1"), invalid("'1', no number of")),
        (function("returns", what="1" * 20_000), invalid("20002 characters")),
        (function("returns", what=[1, 2]), invalid("no number of")),
        (function("returns", what=10**400), invalid("no number of")),
        (function("returns", what=-1.1e18), invalid("-1.1e+18, no number of")),
        (function("returns", what=1e18), scored(1e18, "")),
        (function("not_a_number"), invalid("nan, no number of")),
        (function("no_json"), invalid("TypeError")),
        (function("raises"), invalid("KeyError: 'no such field'")),
        (function("exits"), invalid("SystemExit")),
        (function("length"), invalid("KeyError: 'wanted'")),
        (function("hangs"), infra("timeout")),
        (function("crashes"), infra("crash")),
        (function("eats_memory"), infra("memory")),
        (AllSpec(parts=(ExactSpec(gold="ab"), function("crashes"))), infra("crash")),
        (AllSpec(parts=(ExactSpec(gold="ab"), function("raises"))), invalid("KeyError")),
        (AllSpec(parts=(ExactSpec(gold="xy"), function("crashes"))), scored(0, "exact")),
        (AllSpec(parts=(function("returns", what=1e10),) * 2), invalid("1e+20, no reward")),
        (AllSpec(parts=(function("returns", what=1e18),) * 18), invalid("inf, no reward")),
        (AllSpec(parts=(function("returns", what=-2),)), scored(-2, "")),
        (AllSpec(parts=(FormatSpec(), function("returns", what=-2))), invalid("is worth -2")),
        (AllSpec(parts=(function("returns", what=-2),) * 2), invalid("is worth -2")),
    ],
)
def test_function_states(verifier: Verifier, spec: VerifierSpec, expected: Verdict) -> None:
    key = f"{spec.kind}/{expected.state}"
    before = verifier.counts[key]
    verdict = verifier.verify(turn("ab"), spec)
    assert (verdict.state, verdict.value) == (expected.state, expected.value), verdict
    assert expected.detail in verdict.detail
    assert verifier.counts[key] == before + 1


@pytest.mark.parametrize("place", ["content", "boxed", "tag"])
@pytest.mark.parametrize("text", ["", " \n", "7</think>", "7", r"\boxed{7}"])
def test_function_is_asked_about_a_turn_without_an_answer(
    verifier: Verifier, place: AnswerPlace, text: str
) -> None:
    """Where every reward is negative, 0 for silence would be the best of all."""
    judged = function("distance", wanted=7, worst=100).model_copy(update={"answer_in": place})
    silent = turn(text, is_thinking=True)
    assert verifier.verify(silent, judged) == scored(-93, "by the reward function")


@pytest.mark.parametrize("first", [-2, 0, 1])
@pytest.mark.parametrize("parts", [1, 2])
def test_silence_is_never_worth_more_than_an_answer_of_a_product(
    verifier: Verifier, first: int, parts: int
) -> None:
    """A part that silence fails gives 0, which would beat every negative product."""
    judged = (function("returns", what=first), function("returns", what=-1))[:parts]
    spec = AllSpec(parts=(FormatSpec(), *judged))
    silent, said = (verifier.verify(each, spec) for each in (turn("", is_thinking=True), turn("7")))
    assert silent.value == 0
    assert said.value is None or said.value >= 0
    assert (said.value is None) == (first < 0 or (first, parts) == (1, 2))


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        ("5", r"5\text{ apples}", 1),
        ("x^2+2x+1", "(x+1)^2", 1),
        (r"\{1,2\}", r"\{2,1\}", 1),
        ("1/3", "0.333333", 1),
        ("x=5", "5", 1),
        ("2x", "x+1", 0),
        ("1", "a banana", 0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1),
        # Naming several answers must not pay.
        ("3", "3 or 4", 0),
        ("4", "3, 4", 0),
        ("3", r"4 \text{ or } 3", 0),
        ("3", "3} and \\boxed{4", 0),
        # Marks of mathematics and the end of a sentence are no part of it.
        ("$x^2+2x+1$.", "(x+1)^2", 1),
        (r"\(x^2+2x+1\).", "$(x+1)^2$.", 1),
        ("$$2x$$,", "x+1", 0),
        # What is not closed is no mathematics.
        ("2", r"\begin{cases} x=1 \\ y=2", 0),
    ],
)
def test_symbolic_equality(verifier: Verifier, gold: str, answer: str, value: int) -> None:
    verdict = verifier.verify(turn(rf"\boxed{{{answer}}}"), MathsSpec(gold=gold))
    assert (verdict.state, verdict.value) == ("scored", value), verdict


def test_tower_of_powers_is_infra_and_the_next_answer_is_judged(verifier: Verifier) -> None:
    spec = MathsSpec(gold="9")
    verdict = verifier.verify(turn(r"\boxed{9^{9^{9^{9}}}}"), spec)
    assert (verdict.state, verdict.value) == ("infra", None)
    assert verifier.outcomes["timeout"] > 0
    assert verifier.verify(turn(r"\boxed{3^2}"), spec).value == 1


def test_task_whose_own_answer_is_no_mathematics_is_invalid(verifier: Verifier) -> None:
    for gold in ("$$", "}", "x" * 3000, *UNREADABLE):
        assert verifier.verify(turn(r"\boxed{2}"), MathsSpec(gold=gold)).state == "invalid"


def test_unreadable_gold_equals_its_own_text() -> None:
    pytest.importorskip("math_verify")
    from fivefold.verify.symbolic import compare

    for gold in (r"\frac{1}{", r"\begin{cases} x=1 \\ y=2 \end{cases}"):
        assert compare(gold, {"gold": gold}) == [1, "equal"]


@pytest.mark.parametrize("gold", [r"\text{Tuesday}", r"\text{(B)}", "no solution", r"\emptyset"])
def test_words_are_golds_that_an_answer_may_miss(verifier: Verifier, gold: str) -> None:
    assert verifier.verify(turn(r"\boxed{2}"), MathsSpec(gold=gold)).value == 0


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
@pytest.mark.parametrize("gold", ["x", r"\frac{x}{1}"])
def test_exhausted_resources_are_no_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], gold: str
) -> None:
    pytest.importorskip("math_verify")
    from math_verify import parser

    from fivefold.verify.symbolic import compare

    def exhaust(*_: object, **__: object) -> None:
        raise error

    assert compare(r"\frac{y}{1}", {"gold": gold})[0] == 0
    parser.parse_latex_cached.cache_clear()
    monkeypatch.setattr(parser, "latex2sympy", exhaust)
    with pytest.raises(error):
        compare(r"\frac{y}{1}", {"gold": gold})


def test_forms_agree_with_math_verify() -> None:
    """What the forms decide by themselves, the library decides alike."""
    math_verify = pytest.importorskip("math_verify")
    writings = ("5", "5.0", "1,234", r"\frac{1}{2}", "0.5", "-7", r"\pi")
    for gold, answer in itertools.product(writings, repeat=2):
        ours = compare_forms(gold, answer)
        parsed = [
            math_verify.parse(f"$\\boxed{{{text}}}$", parsing_timeout=None)
            for text in (gold, answer)
        ]
        theirs = math_verify.verify(*parsed, timeout_seconds=None)
        assert ours in (None, theirs), (gold, answer)


def test_missing_math_verify_is_said(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"fivefold\[rl\]"):
        verifier.verify(turn(r"\boxed{x}"), MathsSpec(gold="y"))


def test_event_loop_turns_while_a_function_hangs(verifier: Verifier) -> None:
    async def race() -> tuple[list[Verdict], int]:
        ticks = 0
        slow = asyncio.gather(
            verifier.verify_async(turn("a"), function("hangs")),
            verifier.verify_async(turn("a"), function("length", wanted=1)),
        )
        while not slow.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert (await verifier.verify_async(turn("a"), ExactSpec(gold="a"))).value == 1
        return list(await slow), ticks

    verdicts, ticks = asyncio.run(race())
    assert [verdict.state for verdict in verdicts] == ["infra", "scored"]
    assert ticks > 20


def test_spec_is_read_by_name_or_spelled_out() -> None:
    assert read_spec("number", gold="3", where="v") == NumberSpec(gold="3")
    spelled = {"kind": "exact", "ignore_case": True}
    assert read_spec(spelled, gold="a", where="v") == ExactSpec(gold="a", ignore_case=True)
    assert read_spec({"kind": "exact", "gold": "b"}, gold="a", where="v") == ExactSpec(gold="b")
    product = {"kind": "all", "parts": ["format", "maths"]}
    expected = AllSpec(parts=(FormatSpec(), MathsSpec(gold="a")))
    assert read_spec(product, gold="a", where="v") == expected
    assert hash_config(expected) != hash_config(AllSpec(parts=(FormatSpec(), MathsSpec(gold="b"))))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("numbers", "Did you mean `number`"),
        (None, "Choose one of exact"),
        ({"kind": 3}, "Choose one of exact"),
        ({"kind": "exact", "ignorecase": True}, "ignore_case"),
        ({"kind": "function", "target": "no colon"}, "target"),
        ({"kind": "function", "target": "m:f", "arguments": {"a": {1}}}, "JSON"),
        ({"kind": "number", "gold": "many"}, "choose the verifier `maths`"),
        ({"kind": "exact", "gold": " "}, "gold"),
        ({"kind": "all", "parts": 3}, "parts"),
        ({"kind": "all", "parts": ["numbers"]}, r"parts\[0\]"),
        ({"kind": "all", "parts": [{"kind": "all", "parts": ["exact"]}]}, "parts"),
    ],
)
def test_malformed_spec_is_refused(document: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_spec(document, gold="1", where="v")
