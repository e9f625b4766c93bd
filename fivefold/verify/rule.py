"""Verifiers that are a few lines of rules: exact text, a number, the form of a turn."""

import re

from fivefold.text.event import TurnEnd
from fivefold.verify.answer import find_answers
from fivefold.verify.config import ExactSpec, FormatSpec, NumberSpec
from fivefold.verify.number import read_number
from fivefold.verify.verdict import Verdict, scored

_SHOWN_CHARACTERS = 60


def judge_exact(answer: str, spec: ExactSpec) -> Verdict:
    """Compare the answer's text with the gold."""
    gold, given = (re.sub(r"\s+", " ", text).strip() for text in (spec.gold, answer))
    if spec.ignore_case:
        gold, given = gold.casefold(), given.casefold()
    return scored(
        given == gold, "equal" if given == gold else f"{shorten(given)} is not the answer"
    )


def judge_number(answer: str, spec: NumberSpec) -> Verdict:
    """Compare the number that the answer is with the gold, exactly or within the tolerance."""
    gold = read_number(spec.gold)
    assert gold is not None, "a spec has a number"
    given = read_number(answer)
    if given is None:
        return scored(0, f"{shorten(answer)} is no number")
    is_right = abs(given - gold) <= spec.tolerance * abs(gold)
    return scored(is_right, "equal" if is_right else f"{shorten(answer)} is not the answer")


def judge_format(turn: TurnEnd, spec: FormatSpec) -> Verdict:
    """Return 1 if the turn keeps every rule of the spec, else 0 and which it breaks."""
    thinking = turn.message.reasoning_content or ""
    content = turn.message.content
    answers = find_answers(turn, spec.answer_in, spec.tag)
    rules = {
        "thinking is not closed": turn.is_thinking,
        "a tool call is malformed": bool(turn.faults),
        "no thinking": spec.needs_thinking and not thinking.strip(),
        f"no answer in `{spec.answer_in}`": not answers,
        "more than one answer": spec.is_once and len(answers) > 1,
        "content too long": _is_longer(content, spec.most_content_characters),
        "thinking too long": _is_longer(thinking, spec.most_thinking_characters),
    }
    broken = [rule for rule, is_broken in rules.items() if is_broken]
    return scored(not broken, "; ".join(broken) or "keeps the form")


def shorten(text: str) -> str:
    """Return the text on one line, in quotes, its middle left out if it is long."""
    line = repr(text)
    if len(line) <= _SHOWN_CHARACTERS:
        return line
    half = _SHOWN_CHARACTERS // 2
    return f"{line[:half]}...{line[-half:]}"


def _is_longer(text: str, most: int | None) -> bool:
    return most is not None and len(text) > most
