"""Rollouts from a server by its URL: the loop's Completer over SGLang's routes.

    sample    POST /generate
    score     POST /generate with no token to generate
    push      POST /update_weights_from_tensor or /update_weights_from_disk, then
              GET /get_weight_version: is it what was pushed?

A server counts its weights for itself, and outlives runs. The first push of a run is therefore a
version of the server's own count, the run's versions are told from there on, and a server that
nobody has pushed to holds no version of this run at all: its weights may be anything.

Surprise: a version that was not pushed from here, because somebody else pushed meanwhile, still
gets a number, one that the run does not have; the synchronous loop then refuses its tokens
(`check_synchronous`), as it refuses an answer of two versions.
"""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fivefold.errors import MismatchError
from fivefold.models.convert import released_tensors, write_checkpoint
from fivefold.models.transformer import Transformer
from fivefold.rl.rollout import Ask
from fivefold.rl.rollout_config import RolloutConfig
from fivefold.rl.sample import NOT_SAMPLED
from fivefold.serve.request import SamplingParams, TokenLogprob, VersionSpan
from fivefold.serve.worker import Completion
from fivefold.text.completer import Completion as ServedCompletion
from fivefold.text.completer import CompletionParams, EndpointError, OverloadedError
from fivefold.text.endpoint import Endpoint
from fivefold.text.sglang_completer import SGLangCompleter

logger = logging.getLogger(__name__)

_VERSION_PATH = "/get_weight_version"
T = TypeVar("T")


class ServerCompleter:
    """See `rl.rollout.Completer`; use it as an async context manager, or call `close`."""

    def __init__(self, config: RolloutConfig, model: Transformer, directory: Path) -> None:
        """Sample at `config.url`, which `push` gives the weights that `model` has then.

        `directory` takes the checkpoints of pushes by disk; the newest alone is kept.
        """
        assert config.url, "a server has a URL"
        timeout = config.timeout_seconds
        self._config, self._model, self._directory = config, model, directory
        self._completer = SGLangCompleter(config.url, timeout_seconds=timeout)
        self._endpoint = Endpoint(config.url, timeout_seconds=timeout)
        self._reader = httpx.AsyncClient(
            base_url=config.url.rstrip("/"), timeout=httpx.Timeout(timeout), trust_env=False
        )
        self._free = asyncio.Semaphore(config.concurrency)
        self._offset: int | None = None
        """Server's version less the run's; None: nothing was pushed."""
        self.retried = 0
        """Requests that were sent again."""

    async def __aenter__(self) -> "ServerCompleter":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._completer.close()
        await self._endpoint.close()
        await self._reader.aclose()

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
        """Give the server the model's present weights; they are this version from here on.

        Raises:
            RefusedError, OverloadedError, EndpointError: the server does not take them, however
                often they are sent (`config.retries`).
            MismatchError: it took them and serves another version than was pushed.
        """
        served = await self._retry(self._served_version)
        target = max(served + 1, 1) if self._offset is None else version + self._offset
        await self._push(target)
        found = await self._retry(self._served_version)
        if found != target:
            raise MismatchError(
                expected=f"weight version {target} at `{self._config.url}` after it was pushed",
                found=f"version {found}",
                fix="Let one run alone push to a server",
            )
        self._offset = target - version

    async def version(self) -> int:
        """Return the version that is served; `NOT_SAMPLED` before the first push."""
        if self._offset is None:
            return NOT_SAMPLED
        return await self._retry(self._served_version) - self._offset

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

    async def _retry(self, request: Callable[[], Awaitable[T]]) -> T:
        """Send a request, and again after a fault that may pass."""
        for attempt in range(self._config.retries):
            try:
                return await request()
            except (EndpointError, OverloadedError) as error:
                self.retried += 1
                logger.warning("a request is sent again: %s", error)
                await asyncio.sleep(self._config.retry_seconds * 2**attempt)
        return await request()

    def _to_loop(
        self, found: ServedCompletion, params: SamplingParams, prompt_tokens: int
    ) -> Completion:
        told = sum(span.end - span.begin for span in found.versions)
        if told != len(found.ids) or self._offset is None:
            raise MismatchError(
                expected=f"the weight version of each token from `{self._config.url}`",
                found=f"that of {told} of {len(found.ids)} tokens"
                if self._offset is not None
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
                VersionSpan(span.begin, span.end, span.version - self._offset)
                for span in found.versions
            ],
            cached_tokens=found.cached_tokens,
            prompt_logprobs=[],
            routing=_to_routing(found, prompt_tokens),
            drafted=0,
            accepted=0,
        )

    async def _push(self, target: int) -> None:
        if self._config.push == "tensor":
            path = "/update_weights_from_tensor"
            raw = await asyncio.to_thread(_to_safetensors, self._model)
            weights = {"serialized_named_tensors": [base64.b64encode(raw).decode()]}
        else:
            path = "/update_weights_from_disk"
            place = (self._directory / "pushed").absolute()
            write_checkpoint(self._model, place)
            weights = {"model_path": str(place)}
        body = {**weights, "weight_version": str(target)}
        tries = 0

        async def send() -> None:
            nonlocal tries
            tries += 1
            # The server may have taken them, and its answer been lost: it refuses a version twice.
            if tries > 1 and await self._served_version() == target:
                return
            reply = await self._endpoint.post(path, body)
            is_taken = isinstance(reply, dict) and reply.get("success") is True
            self._endpoint.require(is_taken, path, f"{reply!r}"[:200])

        await self._retry(send)

    async def _served_version(self) -> int:
        """Return the server's own number; -1 where it has another name for its weights."""
        try:
            reply = await self._reader.get(_VERSION_PATH)
            found: Any = reply.json() if reply.status_code == 200 else None
        except (httpx.HTTPError, ValueError) as error:
            raise self._silent(f"{type(error).__name__}: {error}") from error
        if not isinstance(found, dict) or "weight_version" not in found:
            raise self._silent(f"status {reply.status_code}: {reply.text[:100]}")
        told = str(found["weight_version"])
        # SGLang calls the weights that it started with `default`.
        return int(told) if told.isdecimal() else -1

    def _silent(self, found: str) -> EndpointError:
        return EndpointError(
            expected=f"the version of the weights from `{self._config.url}{_VERSION_PATH}`",
            found=found,
            fix="Check that the server is up, and of the kind of `fivefold serve` or SGLang",
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


def _to_safetensors(model: Transformer) -> bytes:
    """Return all weights under their released names."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in released_tensors(model)
    }
    return safetensors.torch.save(tensors)
