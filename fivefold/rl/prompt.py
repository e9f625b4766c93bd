"""Prompts: ids to continue and a way to judge what comes out; where they are drawn from.

The loop knows no task, template or verifier. It draws prompts from numbered sources by weight, and
asks each prompt what its response is worth. A judge that fails is no judge that says 0: the value
is then None, and the rollout leaves its group.

The order is a function of how many prompts were drawn, without chance: the source that is furthest
behind its share is next. Surprise: so the whole state of the data is one integer a source.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from fivefold.errors import FivefoldError, MismatchError
from fivefold.verify.verdict import is_reward


class Judgement(NamedTuple):
    """What a response is worth, or why nobody knows."""

    value: float | None
    """The reward; None unless the state is `scored`."""
    state: Literal["scored", "invalid", "infra"]
    """Judged; the task cannot judge; the machinery failed."""
    detail: str = ""
    """One line for logs and pages."""


Judge = Callable[[Sequence[int]], Awaitable[Judgement]]
"""From the ids of a response, its stop id included."""


@dataclass(frozen=True)
class Prompt:
    """Something to continue."""

    ids: tuple[int, ...]
    """What the policy reads."""
    group: str
    """Names this occurrence; its rollouts form one group."""
    source: str
    """Where it comes from, for metrics and teachers."""
    judge: Judge
    """Judges one response."""


class PromptSource(Protocol):
    """A numbered, endless supply of prompts."""

    @property
    def name(self) -> str:
        """What metrics call it; unique among the sources of a stage."""
        ...

    def prompt(self, index: int) -> Prompt:
        """Return prompt `index`, the same at every call."""
        ...


class PromptStream:
    """Draws from several sources in proportion to their weights."""

    def __init__(self, sources: Sequence[PromptSource], weights: Sequence[float]) -> None:
        """Begin at the first prompt of each."""
        assert len({source.name for source in sources}) == len(sources), "sources share a name"
        self._sources = list(sources)
        self._shares = [weight / math.fsum(weights) for weight in weights]
        self.drawn = {source.name: 0 for source in sources}
        """Prompts drawn from each source: all of the stream's state."""

    def draw(self, count: int) -> list[Prompt]:
        """Return the next prompts."""
        return [self._next() for _ in range(count)]

    def seek(self, drawn: Mapping[str, int]) -> None:
        """Go on where another stream of the same sources stood.

        Raises:
            MismatchError: it had other sources.
        """
        if drawn.keys() != self.drawn.keys():
            raise MismatchError(
                expected=f"a saved state of the sources {', '.join(sorted(self.drawn))}",
                found=", ".join(sorted(drawn)) or "none",
                fix="Resume with the config that wrote the state, or start this stage afresh",
            )
        self.drawn = dict(drawn)

    def _next(self) -> Prompt:
        total = sum(self.drawn.values()) + 1
        behind = [
            share * total - self.drawn[source.name]
            for share, source in zip(self._shares, self._sources, strict=True)
        ]
        source = self._sources[behind.index(max(behind))]
        prompt = source.prompt(self.drawn[source.name])
        self.drawn[source.name] += 1
        return prompt


async def judge_safely(prompt: Prompt, response: Sequence[int]) -> Judgement:
    """Ask a prompt's judge; whatever it raises is the machinery's failure, and never a 0.

    Raises:
        FivefoldError: what a user has to correct, such as a reward function that does not exist.
    """
    try:
        found = await prompt.judge(response)
    except FivefoldError:
        raise
    except Exception as error:  # noqa: BLE001  # a user's function may raise anything
        return Judgement(None, "infra", f"{type(error).__name__}: {error}")
    if found.state == "scored" and not is_reward(found.value):
        return Judgement(None, "invalid", f"the reward is {found.value}")
    return found if found.state == "scored" else found._replace(value=None)
