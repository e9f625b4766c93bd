"""The Completer: the one way in which rooms that want tokens ask for tokens.

Environments, evaluation and RL loops are given a Completer and do not know what is behind it: the
engine in this process (`serve.embedded`), an endpoint in SGLang's shape or in OpenAI's
(`sglang_completer`, `openai_completer`), or a script (`scripted`). Ids go in and ids come out;
nothing is tokenised twice.

Surprise: `logprobs` belong to the distribution that a token was drawn from, temperature and
truncation included, because importance ratios need those. A greedy choice, whose own would be 0,
carries the model's instead, as in SGLang.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fivefold.errors import FivefoldError

Finish = Literal["stop", "length", "abort"]


class RefusedError(FivefoldError, ValueError):
    """A request that will be refused every time: no prompt, unknown ids, settings out of range."""


class OverloadedError(FivefoldError, RuntimeError):
    """The engine has as many requests as it is willing to hold; later it may not."""


class EndpointError(FivefoldError, ConnectionError):
    """No answer, half an answer, or one that breaks the protocol: a fault of the other side."""


@dataclass(frozen=True)
class CompletionParams:
    """How the tokens of one request are chosen and when they end."""

    max_new_tokens: int = 128
    """Tokens to add at most."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the best token."""
    top_k: int = 0
    """Keep this many best tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of best tokens with at least this probability."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the best token's probability."""
    seed: int | None = None
    """Seed of the draws; None: the engine chooses."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end the output, beside the model's own; the id itself is returned."""
    ignore_eos: bool = False
    """Go on past the model's own stop ids."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, amount added to its logit)."""
    returns_routing: bool = False
    """Report the experts of each computed token, where the engine can."""


class PolicySpan(NamedTuple):
    """Output tokens `begin` to `end` come from the weights of `version`."""

    begin: int
    end: int
    version: int


@dataclass(frozen=True)
class Completion:
    """What a Completer answers."""

    ids: tuple[int, ...]
    """Output ids, the stop id included."""
    logprobs: tuple[float, ...]
    """One a token, nats; see the module docstring."""
    finish: Finish
    versions: tuple[PolicySpan, ...]
    """Weights of the output ids, in order; empty where the endpoint does not tell."""
    cached_tokens: int
    """Prompt tokens whose keys were there already."""
    routed_experts: NDArray[np.int32] | None = None
    """(positions, MoE layers, experts a token), prompt first; -1 where none was computed."""


class Completer(Protocol):
    """Continues ids, and scores them."""

    async def generate(
        self,
        ids: Sequence[int],
        params: CompletionParams | None = None,
        *,
        rid: str | None = None,
        session: str | None = None,
    ) -> Completion:
        """Continue `ids`; cancelling the caller aborts the request.

        `rid` names the request, for an abort from elsewhere. `session` joins the requests of one
        conversation, which a router sends to one engine.

        Raises:
            RefusedError, OverloadedError, EndpointError: see there.
        """
        ...

    async def score(self, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability of each id given those before it, in nats; the first has none.

        Raises:
            RefusedError, OverloadedError, EndpointError: see there.
        """
        ...
