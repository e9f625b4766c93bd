"""A Completer over OpenAI's `/v1/completions`: vLLM's, SGLang's or our own server's.

The legacy route is the one that takes ids. `return_token_ids` is vLLM's extension, without which a
text would have to be tokenised again; an endpoint that does not know it is refused. Scoring is
`echo` with no new token.

Surprise: log-probabilities of this route are the model's own at temperature 1, whatever the request
draws with; with other settings they are not those of the distribution drawn from.
"""

from collections.abc import Sequence
from typing import Any

import httpx

from fivefold.text.completer import Completion, CompletionParams, Finish, PolicySpan
from fivefold.text.endpoint import Endpoint, WireReply

_PATH = "/v1/completions"


class _Logprobs(WireReply):
    token_logprobs: tuple[float | None, ...] = ()


class _Choice(WireReply):
    finish_reason: Finish
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    weight_version_spans: tuple[tuple[int, int, int], ...] = ()
    index: int = 0


class _Details(WireReply):
    cached_tokens: int | None = None


class _Usage(WireReply):
    prompt_tokens_details: _Details | None = None


class _Reply(WireReply):
    choices: list[_Choice]
    usage: _Usage | None = None


class OpenAICompleter:
    """See `Completer`; `close` it, or use it as an async context manager."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Speak to `model` at `url` (without `/v1`)."""
        self._model = model
        self._endpoint = Endpoint(
            url, api_key=api_key, timeout_seconds=timeout_seconds, transport=transport
        )

    async def __aenter__(self) -> "OpenAICompleter":
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
        """See `Completer`; experts are not part of this protocol."""
        params = params or CompletionParams()
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(ids),
            "logprobs": 1,
            "return_token_ids": True,
            **_write_sampling(params),
        }
        headers = {}
        if rid is not None:
            headers["x-request-id"] = rid
        if session is not None:
            headers["x-smg-routing-key"] = session
        reply = await self._post(body, headers, choices=1)
        choice = reply.choices[0]
        out = tuple(choice.token_ids or ())
        scores = self._numbers(choice, len(out))
        details = reply.usage.prompt_tokens_details if reply.usage else None
        return Completion(
            ids=out,
            logprobs=tuple(scores),
            finish=choice.finish_reason,
            versions=tuple(PolicySpan(*span) for span in choice.weight_version_spans),
            cached_tokens=(details.cached_tokens or 0) if details else 0,
        )

    async def score(self, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """See `Completer`."""
        if not rows:
            return []
        body = {
            "model": self._model,
            "prompt": [list(row) for row in rows],
            "max_tokens": 0,
            "echo": True,
            "logprobs": 1,
            "return_token_ids": True,
        }
        reply = await self._post(body, {}, choices=len(rows))
        results: list[list[float | None]] = []
        for row, choice in zip(rows, sorted(reply.choices, key=lambda c: c.index), strict=True):
            results.append([None, *self._numbers(choice, len(row), skip=1)])
        return results

    async def _post(self, body: dict[str, Any], headers: dict[str, str], *, choices: int) -> _Reply:
        document = await self._endpoint.post(_PATH, body, headers=headers)
        reply = self._endpoint.read(_Reply, document, _PATH)
        found = f"{len(reply.choices)} choices instead of {choices}"
        self._endpoint.require(len(reply.choices) == choices, _PATH, found)
        has_ids = all(choice.token_ids is not None for choice in reply.choices)
        self._endpoint.require(has_ids, _PATH, "no `token_ids`: it ignores `return_token_ids`")
        return reply

    def _numbers(self, choice: _Choice, tokens: int, *, skip: int = 0) -> list[float]:
        """Return the log-probabilities of a choice after the first `skip`, which have none."""
        told = choice.logprobs.token_logprobs if choice.logprobs is not None else []
        self._endpoint.require(len(told) == tokens, _PATH, f"{len(told)} scores of {tokens} tokens")
        return self._endpoint.logprobs(told[skip:], _PATH)


def _write_sampling(params: CompletionParams) -> dict[str, Any]:
    written: dict[str, Any] = {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    # Extensions are sent only where they mean something: OpenAI's own server knows none of them.
    if params.top_k:
        written["top_k"] = params.top_k
    if params.min_p:
        written["min_p"] = params.min_p
    if params.stop_ids:
        written["stop_token_ids"] = list(params.stop_ids)
    if params.ignore_eos:
        written["ignore_eos"] = True
    if params.seed is not None:
        written["seed"] = params.seed
    if params.logit_bias:
        written["logit_bias"] = {str(token): amount for token, amount in params.logit_bias}
    return written
