"""One HTTP endpoint: a connection pool, and a name for every way in which it can fail.

Status codes become the three errors of `completer`: the request is wrong (4xx), come back later
(429, 503), the other side is broken (no connection, no answer in time, 5xx, or an answer that the
protocol does not have). Nothing is retried here: a request that may have run is not harmless to
repeat, and the caller knows its deadline.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import httpx
import pydantic

from fivefold.text.completer import EndpointError, OverloadedError, RefusedError

_LEAST_LOGPROB = -9000.0
"""vLLM and its relatives write -9999 for a number that they do not have."""
_OF_CONTENT = (400, 413, 422)
"""Statuses that speak of one request; others (401, 403, 404) of every request."""
ReplyT = TypeVar("ReplyT", bound=pydantic.BaseModel)


class RefusedContentError(RefusedError):
    """A request refused for what it holds, too long or malformed, say: another may be taken."""


class WireReply(pydantic.BaseModel):
    """Base of the replies that clients read: fields that they do not use are let through."""

    model_config = pydantic.ConfigDict(extra="ignore", frozen=True)


class Endpoint:
    """Posts JSON to one server; `close` it, or use it as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 600.0,
        connections: int = 1024,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Speak to the server at `url`; `timeout_seconds` bounds the wait for the next bytes."""
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_seconds),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def post(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Return the JSON that the server answers.

        Raises:
            RefusedError, OverloadedError, EndpointError: see there.
            RefusedContentError: status 400, 413 or 422.
        """
        try:
            reply = await self._client.post(path, json=body, headers=headers)
        except httpx.TimeoutException as error:
            raise self._broken(path, f"nothing within {self._timeout_seconds:g} seconds") from error
        except httpx.TransportError as error:
            raise self._broken(path, f"{type(error).__name__}: {error}") from error
        if reply.status_code in (429, 503):
            raise OverloadedError(
                expected=f"`{self.url}{path}` to take one more request",
                found=f"status {reply.status_code}: {_message_of(reply)}",
                fix="Send fewer at a time, or try again later",
            )
        if 400 <= reply.status_code < 500:
            kind = RefusedContentError if reply.status_code in _OF_CONTENT else RefusedError
            raise kind(
                expected=f"a request that `{self.url}{path}` accepts",
                found=f"status {reply.status_code}: {_message_of(reply)}",
                fix="Correct the request",
            )
        if reply.status_code != 200:
            raise self._broken(path, f"status {reply.status_code}: {_message_of(reply)}")
        try:
            return reply.json()
        except ValueError as error:
            raise self._broken(path, f"no JSON: {reply.text[:100]!r}") from error

    def read(self, kind: type[ReplyT], document: object, path: str) -> ReplyT:
        """Check a reply against its schema.

        Raises:
            EndpointError: a field is missing or of another type.
        """
        try:
            return kind.model_validate(document)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise self._broken(path, f"`{place}`: {first['msg']}") from error

    def logprobs(self, told: Sequence[float | None], path: str) -> list[float]:
        """Check log-probabilities, of which none may be missing.

        Raises:
            EndpointError: one is missing, or is none.
        """
        numbers = [score if score is not None else -math.inf for score in told]
        is_whole = all(math.isfinite(x) and _LEAST_LOGPROB < x <= 1e-6 for x in numbers)
        self.require(is_whole, path, "a log-probability that is missing or not one")
        return numbers

    def require(self, holds: bool, path: str, found: str) -> None:
        """Raise an EndpointError that says what was found, unless it holds."""
        if not holds:
            raise self._broken(path, found)

    def _broken(self, path: str, found: str) -> EndpointError:
        return EndpointError(
            expected=f"an answer of the protocol from `{self.url}{path}`",
            found=found[:300],
            fix="Check that the server is up, and of the kind that the client was made for",
        )


def _message_of(reply: httpx.Response) -> str:
    """Return what an error body says, in OpenAI's shape or any other."""
    try:
        document = reply.json()
    except ValueError:
        return reply.text[:200]
    if isinstance(document, dict):
        error = document.get("error", document)
        document = error.get("message", error) if isinstance(error, dict) else error
    return str(document)[:300]
