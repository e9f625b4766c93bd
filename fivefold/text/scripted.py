"""A Completer without a model: a script says what it answers, and which calls go wrong.

For tests of everything that is given a Completer. Its "model" is uniform over the vocabulary, so
that log-probabilities and scores are known in closed form and agree with each other; which tokens
it answers is the script's choice. Faults are given by call: the first call meets the first fault.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fivefold.text.completer import (
    Completion,
    CompletionParams,
    EndpointError,
    OverloadedError,
    PolicySpan,
    RefusedError,
)

Script = Callable[[Sequence[int], CompletionParams], Sequence[int]]
"""From the prompt to the tokens that follow it; what exceeds the budget is cut."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call."""

    kind: Literal["slow", "drop", "error", "overload", "wrong"]
    """slow answers late; drop and error raise EndpointError, before and after the wait; overload
    raises OverloadedError; wrong answers with other tokens than the script's."""
    seconds: float = 0.0
    """Wait before it happens."""


class ScriptedCompleter:
    """See `Completer`."""

    def __init__(
        self,
        vocab_size: int,
        script: Script | None = None,
        *,
        faults: Iterable[Fault | None] = (),
        version: int = 0,
    ) -> None:
        """Answer as `script` says; None: with tokens that a hash of seed and prompt chooses."""
        self._vocab_size = vocab_size
        self._script = script or self._hashed
        self._faults = iter(faults)
        self.version = version
        """Weights that answers claim to come from; may be changed at any time."""
        self.calls: list[tuple[int, ...]] = []
        """Prompts so far, in the order of their arrival."""

    async def generate(
        self,
        ids: Sequence[int],
        params: CompletionParams | None = None,
        *,
        rid: str | None = None,
        session: str | None = None,
    ) -> Completion:
        """See `Completer`."""
        params = params or CompletionParams()
        self._check(ids)
        if params.max_new_tokens < 0:
            raise _refused("`max_new_tokens` of 0 or more", str(params.max_new_tokens))
        self.calls.append(tuple(ids))
        is_wrong = await self._meet_fault()
        said = list(self._script(ids, params))
        if is_wrong:
            said = [(token + 1) % self._vocab_size for token in said]
        finish = "length" if len(said) >= params.max_new_tokens else "stop"
        said = said[: params.max_new_tokens]
        for place, token in enumerate(said):
            if token in params.stop_ids:
                said, finish = said[: place + 1], "stop"
                break
        versions = (PolicySpan(0, len(said), self.version),) if said else ()
        return Completion(tuple(said), (self._logprob,) * len(said), finish, versions, 0)

    async def score(self, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """See `Completer`."""
        for row in rows:
            self._check(row)
        await self._meet_fault()
        return [[None, *[self._logprob] * (len(row) - 1)] for row in rows]

    @property
    def _logprob(self) -> float:
        return -math.log(self._vocab_size)

    async def _meet_fault(self) -> bool:
        """Let this call's fault happen; is the answer to be a wrong one?"""
        fault = next(self._faults, None)
        if fault is None:
            # A call that never yields would hide races that every other Completer has.
            await asyncio.sleep(0)
            return False
        if fault.kind == "drop":
            raise _broken("a dropped connection")
        await asyncio.sleep(fault.seconds)
        if fault.kind == "error":
            raise _broken("status 500")
        if fault.kind == "overload":
            raise OverloadedError(
                expected="a free place", found="a full queue", fix="Try again later"
            )
        return fault.kind == "wrong"

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise _refused("a prompt", "no token")
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise _refused(f"ids from 0 to {self._vocab_size - 1}", str(token))

    def _hashed(self, ids: Sequence[int], params: CompletionParams) -> list[int]:
        seed = 0 if params.temperature == 0 else params.seed
        said = []
        for place in range(params.max_new_tokens):
            text = f"{seed} {place} {list(ids)}"
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            said.append(int.from_bytes(digest, "big") % self._vocab_size)
        return said


def _refused(expected: str, found: str) -> RefusedError:
    return RefusedError(expected=expected, found=found, fix="Correct the request")


def _broken(found: str) -> EndpointError:
    return EndpointError(expected="an answer", found=found, fix="Try again: the script says so")
