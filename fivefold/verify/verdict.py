"""Verdicts: what a verifier says about an answer.

`scored` carries a value. `invalid` says that the task cannot judge: its own answer cannot be read,
its reward function raises or returns no number. `infra` says that the machinery failed: a time
limit, a crash, no memory. Surprise: only `scored` has a value, so that a failure cannot be read as
reward 0 by accident (a swallowed verifier error that scores everybody 0 is the commonest silent
fault of RL frameworks).
"""

import math
from dataclasses import dataclass
from typing import Literal

LARGEST = 1e18
"""Largest size of a value. Advantages are as large as rewards, and train in fp32, which ends at
3.4e38: differences and sums of such values, and squares, are finite numbers there."""
State = Literal["scored", "invalid", "infra"]


@dataclass(frozen=True)
class Verdict:
    """A judged answer, or why it could not be judged."""

    value: float | None
    """Reward, of at most `LARGEST`; None unless the state is `scored`."""
    state: State
    detail: str
    """One line for logs and rollout pages."""

    def __post_init__(self) -> None:
        """Hold the rule that a value and `scored` go together."""
        has_value = is_reward(self.value)
        assert has_value == (self.state == "scored"), f"value {self.value} in state {self.state}"
        assert has_value or self.value is None, "a value can be a reward"


def is_reward(value: float | None) -> bool:
    """Is this a number to calculate with: finite, and of at most `LARGEST`?"""
    return value is not None and math.isfinite(value) and abs(value) <= LARGEST


def scored(value: float, detail: str) -> Verdict:
    """Return the verdict of an answer that was judged."""
    return Verdict(float(value), "scored", detail)


def invalid(detail: str) -> Verdict:
    """Return the verdict where the task itself cannot judge."""
    return Verdict(None, "invalid", detail)


def infra(detail: str) -> Verdict:
    """Return the verdict where the machinery failed."""
    return Verdict(None, "infra", detail)
