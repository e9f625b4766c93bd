"""Comparing mathematical answers: by normal form where that decides, else by math-verify.

Equal forms, equal numbers and different integers are decided here, in microseconds; nearly all
answers of word problems are. The rest needs a computer algebra system, which may think for ever
about a tower of powers, and therefore runs in a worker process.
"""

from fivefold.verify.config import MathsSpec, VerifierConfig
from fivefold.verify.extra import require_package
from fivefold.verify.normal_form import form_to_number, normal_form
from fivefold.verify.pool import WorkerPool
from fivefold.verify.verdict import Verdict, infra, invalid, scored
from fivefold.verify.worker import Outcome

_SYMBOLIC = "fivefold.verify.symbolic:compare"


def compare_forms(gold: str, answer: str) -> bool | None:
    """Return whether two answers are equal, or None where their forms do not tell."""
    gold_form, answer_form = normal_form(gold), normal_form(answer)
    if gold_form == answer_form:
        return True
    gold_number, answer_number = form_to_number(gold_form), form_to_number(answer_form)
    if gold_number is None or answer_number is None:
        return None
    if gold_number == answer_number:
        return True
    # A decimal may be a rounded fraction; math-verify has a rule for that.
    are_integers = gold_number.denominator == answer_number.denominator == 1
    return False if are_integers else None


def judge_maths(answer: str, spec: MathsSpec, pool: WorkerPool, config: VerifierConfig) -> Verdict:
    """Compare the answer's text with the gold.

    Raises:
        MissingPackageError: math-verify is needed and not installed.
    """
    most = config.most_answer_characters
    if len(spec.gold) > most or not normal_form(spec.gold):
        return invalid(f"the task's own answer is empty or longer than {most} characters")
    if len(answer) > most:
        return scored(0, f"the answer is longer than {most} characters")
    is_equal = compare_forms(spec.gold, answer)
    if is_equal is not None:
        return scored(is_equal, "equal form" if is_equal else "another number")
    require_package("math_verify", package="math-verify", extra="rl", why="the verifier `maths`")
    return _outcome_to_verdict(pool.run(_SYMBOLIC, answer, {"gold": spec.gold}))


def _outcome_to_verdict(outcome: Outcome) -> Verdict:
    if outcome.kind == "raised":
        # Whatever math-verify could not digest is a fault of the machinery, not a wrong answer.
        return infra(f"math-verify raised {outcome.detail}")
    if outcome.kind != "returned":
        return infra(outcome.detail)
    value, reason = outcome.value
    return invalid(reason) if value is None else scored(value, reason)
