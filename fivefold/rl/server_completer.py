"""Rollouts from a server by its URL: the loop's Completer over SGLang's routes.

    sample    POST /generate
    score     POST /generate with no token to generate
    push      see `rl.server_weights`

Surprise: a version that was not pushed from here, because somebody else pushed meanwhile, still
gets a number, one that the run does not have; the synchronous loop then refuses its tokens
(`check_synchronous`), as it refuses an answer of two versions.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fivefold.errors import MismatchError
from fivefold.models.transformer import Transformer
from fivefold.rl.retry import Retry
from fivefold.rl.rollout import Ask
from fivefold.rl.rollout_config import RolloutConfig
from fivefold.rl.server_weights import ServerWeights
from fivefold.serve.request import SamplingParams, TokenLogprob, VersionSpan
from fivefold.serve.worker import Completion
from fivefold.text.completer import Completion as ServedCompletion
from fivefold.text.completer import CompletionParams
from fivefold.text.sglang_completer import SGLangCompleter


class ServerCompleter:
    """See `rl.rollout.Completer`; use it as an async context manager, or call `close`."""

    def __init__(self, config: RolloutConfig, model: Transformer, directory: Path) -> None:
        """Sample at `config.url`, which `push` gives the weights that `model` has then.

        `directory` takes the checkpoints of pushes by disk; the newest alone is kept.
        """
        assert config.url, "a server has a URL"
        self._config = config
        self._retry = Retry(config.retries, config.retry_seconds)
        self._completer = SGLangCompleter(config.url, timeout_seconds=config.timeout_seconds)
        self._weights = ServerWeights(config, model, directory, self._retry)
        self._free = asyncio.Semaphore(config.concurrency)

    @property
    def retried(self) -> int:
        """Requests that were sent again."""
        return self._retry.retried

    async def __aenter__(self) -> "ServerCompleter":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._completer.close()
        await self._weights.close()

    async def complete(self, asks: Sequence[Ask]) -> list[Completion]:
        """Answer all requests, in their order.

        Raises:
            RefusedError, OverloadedError, EndpointError: a request that failed for good; the others
                are given up.
            MismatchError: an answer that does not tell the version of its tokens.
        """
        tasks = [asyncio.ensure_future(self._answer(ask)) for ask in asks]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def push(self, version: int) -> None:
        """Give the server the model's present weights; see `ServerWeights.push`."""
        await self._weights.push(version)

    async def version(self) -> int:
        """Return the version that is served; `NOT_SAMPLED` before the first push."""
        return await self._weights.version()

    async def _answer(self, ask: Ask) -> Completion:
        params = ask.params
        async with self._free:
            if params.prompt_logprobs_begin is not None:
                return await self._retry(lambda: self._score(ask))
            wanted = _to_served(params)
            found = await self._retry(lambda: self._completer.generate(list(ask.ids), wanted))
        return self._to_loop(found, params, len(ask.ids))

    async def _score(self, ask: Ask) -> Completion:
        assert not ask.params.max_new_tokens, "a prompt is scored, or continued"
        (scores,) = await self._completer.score([list(ask.ids)])
        begin = ask.params.prompt_logprobs_begin or 0
        return Completion([], [], "length", [], 0, list(scores[begin:]), None, 0, 0)

    def _to_loop(
        self, found: ServedCompletion, params: SamplingParams, prompt_tokens: int
    ) -> Completion:
        told = sum(span.end - span.begin for span in found.versions)
        if told != len(found.ids) or self._weights.offset is None:
            raise MismatchError(
                expected=f"the weight version of each token from `{self._config.url}`",
                found=f"that of {told} of {len(found.ids)} tokens"
                if self._weights.offset is not None
                else "a server that this run has not given its weights",
                fix="Push weights first, with a number as `weight_version`",
            )
        is_greedy = params.temperature == 0
        # The model's own are known where temperature does not change them.
        is_raw = is_greedy or params.temperature == 1
        return Completion(
            ids=list(found.ids),
            logprobs=[
                TokenLogprob(0.0 if is_greedy else score, score if is_raw else float("nan"))
                for score in found.logprobs
            ],
            finish=found.finish,
            versions=[
                VersionSpan(span.begin, span.end, span.version - self._weights.offset)
                for span in found.versions
            ],
            cached_tokens=found.cached_tokens,
            prompt_logprobs=[],
            routing=_to_routing(found, prompt_tokens),
            drafted=0,
            accepted=0,
        )


def _to_served(params: SamplingParams) -> CompletionParams:
    return CompletionParams(
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


def _to_routing(found: ServedCompletion, prompt_tokens: int) -> Tensor | None:
    """Return the experts of every token but the last, for which none was computed."""
    if found.routed_experts is None:
        return None
    known = found.routed_experts.astype(np.int16)
    missing = prompt_tokens + len(found.ids) - len(known)
    padding = np.full((max(missing, 0), *known.shape[1:]), -1, np.int16)
    return torch.from_numpy(np.concatenate([known, padding]))
