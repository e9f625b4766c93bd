"""Configs of conversations for training: how they are rendered, held out, packed and chosen.

How they are chosen from attempts at problems is told here too, and which of the problems are worth
RL: both are windows of the solve rate, k passes of n scored attempts.
"""

from typing import Literal

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError

Thinking = Literal["interleaved", "preserved"]
"""What becomes of earlier turns' thinking.

- `interleaved`: a user's message drops it, so that a conversation forks there into samples of which
  each learns the turns since (GLM's default).
- `preserved`: it stays, and the conversation is one sample (GLM-5 for coding agents).
"""


class ConversationsConfig(Config):
    """How conversations become rows."""

    context_tokens: int = pydantic.Field(default=4096, ge=2)
    """Tokens that a row predicts; a sample of more than one token more is dropped, never cut."""
    thinking: Thinking = "interleaved"
    """What becomes of earlier turns' thinking."""
    thinking_of: dict[str, Thinking] = pydantic.Field(default_factory=dict)
    """The same for single sources."""
    heldout_share: float = pydantic.Field(default=0.02, ge=0, lt=1)
    """Share of prompts held out among the conversations that name no split."""
    heldout_seed: int = 0
    """Seed of that choice; the run's seed does not move it, so that runs compare."""


class DifficultyConfig(Config):
    """The window of solve rates, k passes of n scored attempts, that are worth training on."""

    lowest: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Smallest rate that stays, inclusive."""
    highest: float = pydantic.Field(default=1.0, ge=0, le=1)
    """Largest rate that stays, inclusive."""
    needs_pass: bool = True
    """Drop what was never solved, whatever `lowest` says: it may be wrong or impossible."""
    needs_miss: bool = False
    """Drop what was always solved, whatever `highest` says: equal rewards teach RL nothing."""
    least_scored: int = pydantic.Field(default=1, ge=1)
    """Scored attempts without which nothing is known of a prompt."""

    @pydantic.model_validator(mode="after")
    def _check_window(self) -> "DifficultyConfig":
        if self.lowest > self.highest:
            raise ConfigError(
                expected="`lowest` of at most `highest`",
                found=f"{self.lowest} and {self.highest}",
                fix="Correct the window",
            )
        return self


class ChooseConfig(Config):
    """What becomes of attempts: conversations to learn from, and problems for RL."""

    take: Literal["passing", "best"] = "passing"
    """Each different passing answer of a problem (rejection sampling), or its best (best-of-n)."""
    least_reward: float = 1.0
    """Least reward of an answer that is learned, with either way of taking."""
    most_per_problem: int = pydantic.Field(default=4, gt=0)
    """Passing answers of one problem at most, so that easy problems do not crowd out hard ones."""
    learned: DifficultyConfig = DifficultyConfig()
    """Problems whose answers are learned."""
    trained: DifficultyConfig = DifficultyConfig(needs_miss=True)
    """Problems that RL trains on: 0 < k < n, for equal rewards have no advantage."""
    heldout_share: float = pydantic.Field(default=0.05, ge=0, lt=1)
    """Share of the learned problems, at least one of two or more, that is validated on instead."""
    heldout_seed: int = 0
    """Seed of that choice."""
    shown: int = pydantic.Field(default=3, ge=0)
    """Conversations of each source that the report shows."""
