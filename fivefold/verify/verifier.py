"""The verifier: a parsed turn and a spec in, a verdict out, and a count of every state.

Rules are judged where they are called. Code that may hang or crash, the user's and math-verify's,
goes to worker processes. Every way in which judging can fail ends in a verdict: a reward function
that raises or returns no number is `invalid`, one that hangs, crashes or exhausts its memory is
`infra`. Only what can never work, a function that does not exist or a package that is not
installed, is an error.

Surprise: a turn without an answer is worth 0 where the answer is compared, but a reward function is
asked about it, with the empty text: its rewards may be negative, and silence would be the best.
A product (`all`) has no place for negative values. Beside one, the 0 that another part gives to
silence would be the best, and two of them make a reward: such an answer is `invalid`.
"""

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fivefold.text.event import TurnEnd
from fivefold.verify.answer import find_answer
from fivefold.verify.config import (
    AllSpec,
    ExactSpec,
    FormatSpec,
    FunctionSpec,
    MathsSpec,
    NumberSpec,
    VerifierConfig,
    VerifierSpec,
)
from fivefold.verify.maths import judge_maths
from fivefold.verify.pool import WorkerPool
from fivefold.verify.rule import judge_exact, judge_format, judge_number
from fivefold.verify.verdict import LARGEST, Verdict, infra, invalid, is_reward, scored
from fivefold.verify.worker import Outcome

_RULES = (ExactSpec, NumberSpec, FormatSpec)
"""Specs that never need a process."""


class Verifier:
    """Judges turns; use it as a context manager, or call `close`."""

    def __init__(self, config: VerifierConfig) -> None:
        """Start nothing yet."""
        self._config = config
        self._pool = WorkerPool(config)
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="fivefold-verify")
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """Verdicts by `kind/state`, for example `maths/infra`."""

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being judged and end the processes."""
        self._threads.shutdown()
        self._pool.close()

    @property
    def outcomes(self) -> Counter[str]:
        """What became of calls in worker processes, by kind, and processes `started`."""
        return Counter(self._pool.counts)

    def verify(self, turn: TurnEnd, spec: VerifierSpec) -> Verdict:
        """Judge a turn; waits for a free process if it needs one.

        Raises:
            ConfigError: a reward function that cannot be imported.
            MissingPackageError: math-verify is needed and not installed.
        """
        verdict = self._judge(turn, spec)
        with self._lock:
            self.counts[f"{spec.kind}/{verdict.state}"] += 1
        return verdict

    async def verify_async(self, turn: TurnEnd, spec: VerifierSpec) -> Verdict:
        """As `verify`, without holding up the event loop."""
        if isinstance(spec, _RULES):
            return self.verify(turn, spec)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.verify, turn, spec)

    def _judge(self, turn: TurnEnd, spec: VerifierSpec) -> Verdict:
        if isinstance(spec, AllSpec):
            return self._judge_all(turn, spec)
        if isinstance(spec, FormatSpec):
            return judge_format(turn, spec)
        answer = find_answer(turn, spec.answer_in, spec.tag)
        if isinstance(spec, FunctionSpec):  # what a non-answer is worth is the function's to say
            return function_verdict(self._pool.run(spec.target, answer or "", spec.arguments))
        if answer is None:
            why = "thinking is not closed" if turn.is_thinking else f"none in `{spec.answer_in}`"
            return scored(0, f"no answer: {why}")
        match spec:
            case ExactSpec():
                return judge_exact(answer, spec)
            case NumberSpec():
                return judge_number(answer, spec)
            case MathsSpec():
                return judge_maths(answer, spec, self._pool, self._config)

    def _judge_all(self, turn: TurnEnd, spec: AllSpec) -> Verdict:
        value, details = 1.0, list[str]()
        for part in spec.parts:
            verdict = self._judge(turn, part)
            if verdict.value is None:
                return verdict
            if verdict.value < 0 and len(spec.parts) > 1:
                return invalid(
                    f"the part `{part.kind}` is worth {verdict.value:g}, and a product has no "
                    "place for less than 0"
                )
            value *= verdict.value
            details.append(f"{part.kind}: {verdict.detail}")
            if value == 0:
                break
        if not is_reward(value):
            return invalid(f"the product of the parts is {value}, no reward")
        return scored(value, "; ".join(details))


def function_verdict(outcome: Outcome) -> Verdict:
    """Return the verdict that a call of a reward function means."""
    match outcome.kind:
        case "raised":
            return invalid(f"the reward function raised {outcome.detail}")
        case "returned":
            return _returned_verdict(outcome.value)
    return infra(f"{outcome.kind}: {outcome.detail}")


def _returned_verdict(returned: Any) -> Verdict:
    value, detail = returned, "by the reward function"
    if isinstance(returned, list) and len(returned) == 2 and isinstance(returned[1], str):
        value, detail = returned
    if not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        shown = repr(returned)[:80]
        return invalid(f"the reward function returned {shown}, no number of at most {LARGEST:g}")
    return scored(value, detail)
