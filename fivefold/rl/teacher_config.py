"""What becomes of tokens that a teacher cannot judge."""

import pydantic

from fivefold.config import Config


class TeacherFaultConfig(Config):
    """The policy for log-probabilities that are not finite: NaN, or a probability of 0.

    Such a token leaves the loss and its denominators and is counted
    (`rl/teacher_nonfinite_tokens`); it never trains as if the teacher agreed.
    """

    most_nonfinite_share: float = pydantic.Field(default=0.01, ge=0, le=1)
    """Share of the tokens that one teacher judges in a batch above which the run ends."""
