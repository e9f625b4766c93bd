"""Rollouts: a prompt's continuation as a sample that trains, and how it is asked of an engine.

Every draw of a rollout comes from a seed that its group and number decide, so that neither other
requests nor a restart change it. Surprise: that makes the draws equal, not yet the bits of the
log-probabilities, which depend on who shares a forward. Therefore a batch is handed to the engine
as a whole before its first step, and always in the same order.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fivefold.errors import FivefoldError, MismatchError
from fivefold.rl.prompt import Judgement, Prompt
from fivefold.rl.sample import NOT_SAMPLED, Sample, SampleError
from fivefold.serve.engine import Engine
from fivefold.serve.request import SamplingParams
from fivefold.serve.worker import Completion, completion_of


class EngineFailedError(FivefoldError, RuntimeError):
    """The engine has died while it sampled."""


class Ask(NamedTuple):
    """One request."""

    ids: Sequence[int]
    params: SamplingParams


class Completer(Protocol):
    """What the loop needs of an engine."""

    async def complete(self, asks: Sequence[Ask]) -> list[Completion]:
        """Answer all requests, in their order."""
        ...

    async def push(self, version: int) -> None:
        """Serve the policy's present weights under this version, from the next request on."""
        ...

    async def version(self) -> int:
        """Return the version that is served."""
        ...


class EngineCompleter:
    """An engine that shares the trainer's weights and its thread.

    Trainer and engine take turns. On a thread of its own the engine would bring a second team of
    OpenMP threads, and each team's waiting would slow the other (`docs/log.md`).
    """

    def __init__(self, engine: Engine) -> None:
        """Drive an engine that nobody else drives."""
        self._engine = engine

    async def complete(self, asks: Sequence[Ask]) -> list[Completion]:
        """Answer all, as many at a time as the engine's queue holds.

        Raises:
            EngineFailedError: the engine cannot go on.
        """
        size = self._engine.config.most_waiting
        completions: list[Completion] = []
        for begin in range(0, len(asks), size):
            # Here a run can be cancelled: nothing else waits while the engine computes.
            await asyncio.sleep(0)
            completions += self._complete(asks[begin : begin + size])
        return completions

    def _complete(self, asks: Sequence[Ask]) -> list[Completion]:
        # What an earlier batch left in the prefix tree must not decide what this one computes.
        self._engine.flush_cache()
        try:
            requests = [self._engine.add(ask.ids, ask.params) for ask in asks]
            self._engine.run_until_idle()
        except BaseException as error:
            self._engine.abort()
            is_fault = isinstance(error, RuntimeError | ValueError | ArithmeticError)
            if isinstance(error, FivefoldError) or not is_fault:
                raise
            raise EngineFailedError(
                expected="an engine that answers every request",
                found=f"{type(error).__name__}: {error}",
                fix="Look at the error above; weights that are not finite, or a full memory, are "
                "the usual causes",
            ) from error
        return [completion_of(request) for request in requests]

    async def push(self, version: int) -> None:
        """Tell the engine that the shared weights have changed."""
        self._engine.update_weights(None, version)

    async def version(self) -> int:
        """Return the engine's version."""
        return self._engine.version


@dataclass(frozen=True, eq=False)
class Rollout(Sample):
    """A sample with what only its rollout knows."""

    prompt_tokens: int = 0
    """Tokens before the response."""
    routing: np.ndarray | None = None
    """Experts that the engine chose, int16 [n, MoE layers, A]; -1 for the last token."""
    detail: str = ""
    """What the judge said."""


def seed_of(run_seed: int, group: str, number: int) -> int:
    """Return the seed of a group's rollout `number` (63 bits of BLAKE2b)."""
    digest = hashlib.blake2b(f"{run_seed} {group} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_rollout(prompt: Prompt, completion: Completion, judgement: Judgement) -> Rollout:
    """Turn a completion that was judged into a sample; its response trains, its prompt does not.

    Raises:
        SampleError: a log-probability is not finite, or nothing was sampled.
        MismatchError: the engine left out experts that it was asked for.
    """
    head, tail = len(prompt.ids), len(completion.ids)
    if not tail:
        raise SampleError(
            expected=f"at least one sampled token in a rollout of group `{prompt.group}`",
            found="none",
            fix="Look at what the engine or the server answers",
        )
    versions = np.full(head + tail, NOT_SAMPLED, np.int32)
    for span in completion.versions:
        versions[head + span.begin : head + span.end] = span.version
    logprobs = np.zeros(head + tail, np.float32)
    logprobs[head:] = [logprob.sampled for logprob in completion.logprobs]
    return Rollout(
        ids=np.array([*prompt.ids, *completion.ids], np.int64),
        loss_mask=np.arange(head + tail) >= head,
        rollout_logprobs=logprobs,
        versions=versions,
        group=prompt.group,
        reward=judgement.value,
        source=prompt.source,
        is_truncated=completion.finish == "length",
        prompt_tokens=head,
        routing=_routing_of(completion, prompt, head + tail),
        detail=judgement.detail,
    )


def _routing_of(completion: Completion, prompt: Prompt, tokens: int) -> np.ndarray | None:
    if completion.routing is None:
        return None
    routing = completion.routing[:tokens].numpy()
    if len(routing) < tokens or (routing[:-1] < 0).any():
        raise MismatchError(
            expected="the experts of every token but the last from the engine",
            found=f"gaps in a rollout of group `{prompt.group}`",
            fix="Turn prefix sharing off in the engine, or routing replay off",
        )
    return routing
