"""A Completer over `/generate` in SGLang's shape: our own server's, or SGLang's.

Source: SGLang's native API and sampling parameters (docs.sglang.io, `basic_usage/native_api`,
`basic_usage/sampling_params`). Scoring is generation of no token, with the log-probabilities of the
input, as slime scores with a teacher.

Surprise: a large negative number stands for "missing" in some engines' log-probabilities. It would
pass for a very unlikely token, so that it is refused here.
"""

import base64
import math
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from fivefold.text.completer import Completion, CompletionParams, Finish, PolicySpan
from fivefold.text.endpoint import Endpoint, WireReply

_PATH = "/generate"
TokenScore = tuple[float | None, int, Any]
"""(log-probability, id, text or null)."""


class _FinishReason(WireReply):
    type: Finish


class _MetaInfo(WireReply):
    finish_reason: _FinishReason
    cached_tokens: int = 0
    output_token_logprobs: tuple[TokenScore, ...] = ()
    input_token_logprobs: tuple[TokenScore, ...] = ()
    weight_version: str | int | None = None
    weight_version_spans: list[tuple[int, int, int]] | None = None
    routed_experts: str | None = None
    routed_experts_shape: tuple[int, int, int] | None = None


class _Reply(WireReply):
    output_ids: list[int]
    meta_info: _MetaInfo


class SGLangCompleter:
    """See `Completer`; `close` it, or use it as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Speak to the server at `url`."""
        self._endpoint = Endpoint(url, timeout_seconds=timeout_seconds, transport=transport)

    async def __aenter__(self) -> "SGLangCompleter":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._endpoint.close()

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
        body: dict[str, Any] = {
            "input_ids": list(ids),
            "sampling_params": write_sampling(params),
            "return_logprob": True,
            "logprob_start_len": -1,
            "return_routed_experts": params.returns_routing,
        }
        if rid is not None:
            body["rid"] = rid
        headers = None
        if session is not None:
            body["session_id"] = session
            # SGLang's router hashes this header, so that a session stays with one engine.
            headers = {"x-smg-routing-key": session}
        document = await self._endpoint.post(_PATH, body, headers=headers)
        reply = self._endpoint.read(_Reply, document, _PATH)
        meta = reply.meta_info
        scores = self._numbers(meta.output_token_logprobs)
        told = [token for _, token, _ in meta.output_token_logprobs]
        self._endpoint.require(
            told == reply.output_ids, _PATH, "log-probabilities of other ids than the output's"
        )
        return Completion(
            ids=tuple(reply.output_ids),
            logprobs=tuple(scores),
            finish=meta.finish_reason.type,
            versions=_spans(meta, len(reply.output_ids)),
            cached_tokens=meta.cached_tokens,
            routed_experts=self._experts(meta),
        )

    async def score(self, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """See `Completer`."""
        if not rows:
            return []
        body = {
            "input_ids": [list(row) for row in rows],
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        documents = await self._endpoint.post(_PATH, body)
        is_whole = isinstance(documents, list) and len(documents) == len(rows)
        self._endpoint.require(is_whole, _PATH, f"no list of {len(rows)} answers")
        results: list[list[float | None]] = []
        for row, document in zip(rows, documents, strict=True):
            scored = self._endpoint.read(_Reply, document, _PATH).meta_info.input_token_logprobs
            told = [token for _, token, _ in scored]
            self._endpoint.require(told == list(row), _PATH, "scores of other ids than the row's")
            results.append([None, *self._numbers(scored[1:])])
        return results

    def _numbers(self, scores: Sequence[TokenScore]) -> list[float]:
        return self._endpoint.logprobs([score for score, _, _ in scores], _PATH)

    def _experts(self, meta: _MetaInfo) -> NDArray[np.int32] | None:
        if meta.routed_experts is None:
            return None
        shape = meta.routed_experts_shape
        try:
            raw = base64.b64decode(meta.routed_experts, validate=True)
        except ValueError:
            raw = b"?"
        is_whole = len(raw) % 4 == 0 and (shape is None or len(raw) == 4 * math.prod(shape))
        self._endpoint.require(is_whole, _PATH, "routed experts that do not fill their shape")
        flat = np.frombuffer(raw, dtype=np.int32)
        return flat if shape is None else flat.reshape(shape)


def write_sampling(params: CompletionParams) -> dict[str, Any]:
    """Return SGLang's `sampling_params`; there, -1 keeps all of top-k."""
    written: dict[str, Any] = {
        "max_new_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k or -1,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "ignore_eos": params.ignore_eos,
        "stop_token_ids": list(params.stop_ids),
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }
    if params.seed is not None:
        written["sampling_seed"] = params.seed
    if params.logit_bias:
        written["logit_bias"] = {str(token): amount for token, amount in params.logit_bias}
    return written


def _spans(meta: _MetaInfo, tokens: int) -> tuple[PolicySpan, ...]:
    """Return the spans that our server tells, or the one version that SGLang tells."""
    if meta.weight_version_spans is not None:
        return tuple(PolicySpan(*span) for span in meta.weight_version_spans)
    version = str(meta.weight_version)
    return (PolicySpan(0, tokens, int(version)),) if version.isdecimal() and tokens else ()
