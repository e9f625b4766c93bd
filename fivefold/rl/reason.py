"""Why answers could not be judged, counted by kind.

A judge's words hold the numbers and the quoted texts of the answer at hand. Counted as they stand,
one fault has as many reasons as answers; cut at some length, two faults become one. Numbers and
quotations are therefore left out of a kind, and the first words of each kind are kept beside it.

Judges may take hours over many answers, so that what they fail at is told as it happens, and ends
the stage where most of it fails from the beginning.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence

from fivefold.errors import FivefoldError
from fivefold.rl.prompt import Judgement, Prompt, judge_safely

logger = logging.getLogger(__name__)
_VARIABLE = re.compile(
    r"""(?<!\w)"(?:[^"\\]|\\.?|"(?=\w))*(?:"|$)"""
    r"""|(?<!\w)'(?:[^'\\]|\\.?|'(?=\w))*(?:'|$)"""
    r"|\b0x[0-9a-f]+|[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?",
    re.DOTALL | re.IGNORECASE,
)
"""Quotations, cut ones included and apostrophes not, and numbers."""
_PLACE = re.compile(r"\s*(?:\([^()\s]+:\d+\))?$")
"""Where in a reward function's file it raised: a part of the kind."""
_EXAMPLE_CHARACTERS = 300
_MOST_TOLD = 5
"""Kinds in the log; all of them are counted."""


class UnjudgedError(FivefoldError, RuntimeError):
    """Too few answers can be judged to learn anything, of a problem or from it."""


class Reasons:
    """Failed judgements by kind; each of the first kinds is told once."""

    def __init__(self, what: str) -> None:
        """Begin with none; `what` names in the log what was judged, as `a rollout`."""
        self._what = what
        self._told = set[str]()
        self.counts = Counter[str]()
        """Failures of each kind."""
        self.examples = dict[str, str]()
        """The words of the first failure of each kind, cut where they are long."""

    def note(self, prompt: Prompt, judgement: Judgement, *, stays: bool = False) -> None:
        """Count why an answer to `prompt` has no reward; `stays`: it is of use all the same."""
        kind, words = kind_of(judgement), f"{judgement.state}: {judgement.detail}"
        example = self.examples.setdefault(kind, words[:_EXAMPLE_CHARACTERS])
        self.counts[kind] += 1
        if kind not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(kind)
            outcome = "is not judged" if stays else "is left out"
            logger.warning("%s of `%s` %s, %s", self._what, prompt.group, outcome, example)

    def take(self) -> tuple[Counter[str], dict[str, str]]:
        """Return what was counted since the last time, with the examples; begin anew."""
        taken = self.counts, self.examples
        self.counts, self.examples = Counter[str](), dict[str, str]()
        return taken


class Judging:
    """Asks judges, and stops where most answers cannot be judged."""

    def __init__(self, what: str, limit: int, *, is_record: bool = False) -> None:
        """Begin; `limit` failures and fewer successes since then are an error.

        `what` names in the log what is judged, as `a rollout`. Where rewards are a record that
        nothing depends on (`is_record`), it is for the caller to look at `is_hopeless`.
        """
        self._limit, self._is_record = limit, is_record
        self.reasons = Reasons(what)
        """Why answers could not be judged."""
        self._verdicts = Counter[bool]()

    def begin_anew(self) -> None:
        """Forget how many answers could be judged, and how many could not."""
        self._verdicts.clear()

    @property
    def failed(self) -> int:
        """Answers that could not be judged."""
        return self._verdicts[False]

    @property
    def is_hopeless(self) -> bool:
        """Could `limit` answers not be judged, and fewer could?"""
        return self.failed >= self._limit and self.failed > self._verdicts[True]

    async def judge(self, prompt: Prompt, response: Sequence[int]) -> Judgement:
        """Return what a response is worth.

        Raises:
            UnjudgedError: `limit` answers could not be judged, and fewer could; not for a record.
        """
        judgement = await judge_safely(prompt, response)
        self._verdicts[judgement.state == "scored"] += 1
        if judgement.state != "scored":
            self.reasons.note(prompt, judgement, stays=self._is_record)
            if self.is_hopeless and not self._is_record:
                raise self._unjudged()
        return judgement

    def _unjudged(self) -> UnjudgedError:
        ((kind, times),) = self.reasons.counts.most_common(1)
        return UnjudgedError(
            expected="answers that can be judged, most of them",
            found=f"{self.failed} of the first {self._verdicts.total()} that cannot; {times} times "
            f"{self.reasons.examples[kind]}",
            fix="Correct what judges: it has to return within `verifier.limit_seconds`, and 0 for "
            "what is no answer; where so many may fail, raise `sampling.unjudged_limit`",
        )


def kind_of(judgement: Judgement) -> str:
    """Return a failure's state and words without their numbers and quotations."""
    words = f"{judgement.state}: {judgement.detail}"
    place = _PLACE.search(words)
    assert place is not None, "it may be empty"
    return _VARIABLE.sub("_", words[: place.start()]) + place[0]
