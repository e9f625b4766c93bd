"""A Completer on the engine in this process: the default of RL, evaluation and demos.

The same answers as over HTTP, without the wire. Errors of the engine become those of the protocol,
so that a caller cannot tell the two apart.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fivefold.serve.request import QueueFullError, RequestError, SamplingParams
from fivefold.serve.worker import Completion as EngineCompletion
from fivefold.serve.worker import EngineEndedError, Worker
from fivefold.text.completer import (
    Completion,
    CompletionParams,
    EndpointError,
    OverloadedError,
    PolicySpan,
    RefusedError,
)


class EngineCompleter:
    """See `text.completer.Completer`; the worker belongs to the caller."""

    def __init__(self, worker: Worker) -> None:
        """Ask `worker`."""
        self._worker = worker

    async def generate(
        self,
        ids: Sequence[int],
        params: CompletionParams | None = None,
        *,
        rid: str | None = None,
        session: str | None = None,
    ) -> Completion:
        """See `Completer`; a session needs nothing here, its prefix is found by its tokens."""
        params = params or CompletionParams()
        wanted = SamplingParams(
            max_new_tokens=params.max_new_tokens,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed,
            stop_ids=params.stop_ids,
            ignore_eos=params.ignore_eos,
            logit_bias=params.logit_bias,
            returns_routing=params.returns_routing,
        )
        done = await self._run(list(ids), wanted, rid)
        is_greedy = params.temperature == 0
        experts = None
        if done.routing is not None:
            # The last token has gone through no expert yet.
            known = done.routing[: len(ids) + len(done.ids) - 1]
            experts = known.to(torch.int32).numpy().astype(np.int32)
        return Completion(
            ids=tuple(done.ids),
            logprobs=tuple(score.raw if is_greedy else score.sampled for score in done.logprobs),
            finish=done.finish,
            versions=tuple(PolicySpan(*span) for span in done.versions),
            cached_tokens=done.cached_tokens,
            routed_experts=experts,
        )

    async def score(self, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """See `Completer`."""
        try:
            return await self._worker.score([list(row) for row in rows])
        except RequestError as error:
            raise _as_refused(error) from error
        except QueueFullError as error:
            raise _as_overloaded(error) from error

    async def _run(
        self, ids: list[int], params: SamplingParams, rid: str | None
    ) -> EngineCompletion:
        try:
            return await self._worker.generate(ids, params, rid=rid)
        except RequestError as error:
            raise _as_refused(error) from error
        except QueueFullError as error:
            raise _as_overloaded(error) from error
        except EngineEndedError as error:
            raise EndpointError(
                expected="an engine that runs", found=str(error), fix="Start it anew"
            ) from error


def _as_refused(error: RequestError) -> RefusedError:
    return RefusedError(expected=error.expected, found=error.found, fix=error.fix)


def _as_overloaded(error: QueueFullError) -> OverloadedError:
    return OverloadedError(expected=error.expected, found=error.found, fix=error.fix)
