"""Failures are counted by their kind: not by the numbers and texts of the answer at hand."""

import asyncio
import logging

import pytest
from test_collect import collect, taking_turns

from fivefold.rl.progress import Progress, count_batch
from fivefold.rl.prompt import Judgement, Prompt
from fivefold.rl.reason import Reasons, kind_of


def judged(detail: str) -> Judgement:
    return Judgement(None, "invalid", detail)


async def judge(response: object) -> Judgement:
    return judged("never asked")


PROMPT = Prompt((1,), "g", "s", judge)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ValueError: 'a b' is no number", "ValueError: 'c' is no number"),
        ("distance 1.5 of 3", "distance 2 of -1e-05"),
        ("at 0x7f3a10: gone", "at 0x99: gone"),
        ('KeyError: "it\'s"', 'KeyError: "x"'),
        ("cut: 'abc", "cut: 'something longer"),
        (r"raised 'a\'b c'", "raised 'x'"),
        ("base 10: 'ab' (two.py:7)", r"base 10: '\x18 a\ (two.py:7)"),
        ("base 10: 'ab' (two.py:7)", "base 10: 'cut, with ('s (two.py:7)"),
    ],
)
def test_reasons_that_differ_in_values_are_one(one: str, other: str) -> None:
    assert kind_of(judged(one)) == kind_of(judged(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("TypeError: no text", "ValueError: no text"),
        ("it can't be read, so it won't count", "it can't be told, so it won't count"),
        ("x" * 500 + " of text", "x" * 500 + " of lists"),
        ("the reward is nan", "the reward is inf"),
        ("KeyError: 'a' (two.py:7)", "KeyError: 'a' (two.py:9)"),
    ],
)
def test_reasons_in_other_words_are_two(one: str, other: str) -> None:
    assert kind_of(judged(one)) != kind_of(judged(other))
    assert kind_of(judged(one)) != kind_of(Judgement(None, "infra", one))


def test_each_kind_is_counted_whole_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    reasons = Reasons("a rollout")
    with caplog.at_level(logging.WARNING):
        for number in range(7):
            reasons.note(PROMPT, judged(f"no vowel in {number}"))
            reasons.note(PROMPT, judged("y" * 400))
    assert len(caplog.records) == 2
    assert "a rollout of `g` is left out, invalid: no vowel in 0" in caplog.text
    counts, examples = reasons.take()
    assert counts == {"invalid: no vowel in _": 7, "invalid: " + "y" * 400: 7}
    assert examples["invalid: no vowel in _"] == "invalid: no vowel in 0"
    assert reasons.take() == ({}, {})
    reasons.note(PROMPT, judged("no vowel in 9"))
    assert len(caplog.records) == 2
    assert reasons.counts.total() == 1


def test_a_run_remembers_the_commonest_kinds_and_counts_all() -> None:
    progress = Progress()
    for batch in range(3):
        # Kind n fails n + 1 times a batch; kinds are told apart by their words alone.
        rewards = [ArithmeticError("q" * (n + 1)) for n in range(30) for _ in range(n + 1)]
        collected = collect(taking_turns(*rewards[16 * batch :]))
        count_batch(progress, collected)
    assert sum(progress.reasons.values()) == progress.counts["infra"] == 48
    many = {f"infra: ArithmeticError: {'q' * (n + 1)}": 1 for n in range(30)}
    progress = Progress(reasons=many)
    for _ in range(2):
        count_batch(progress, collect(taking_turns(ArithmeticError("new"))))
    assert progress.reasons["infra: ArithmeticError: new"] == 32
    assert progress.reasons["other reasons"] == 11
    assert sum(progress.reasons.values()) == 30 + 32
    assert progress.reason_examples == {
        "infra: ArithmeticError: new": "infra: ArithmeticError: new"
    }


def test_batch_that_could_not_be_judged_keeps_its_reasons() -> None:
    collected = collect(taking_turns(1.0, ZeroDivisionError("by 3"), 0.0, KeyError("x")))
    assert collected.reasons == {
        "infra: ZeroDivisionError: by _": 4,
        "infra: KeyError: _": 4,
    }
    assert asyncio.run(judge(None)).detail == "never asked"
