"""What goes wrong, as OpenAI's clients expect to hear it: a status and an error object.

Every body is `{"error": {"message", "type", "param", "code"}}`, also for the native routes, unknown
paths and bodies that are no JSON. A defect of ours is a 500 without its details, which go to the
log. Also here: how a route learns that its client has gone.
"""

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from fivefold.errors import FivefoldError
from fivefold.serve.request import QueueFullError
from fivefold.serve.served import ContextError, NotReadyError, UnknownModelError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody is there to answer; the status 499 of nginx appears in logs only."""


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    *,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """Return OpenAI's error object."""
    # A lone surrogate of the client's own text must not break the answer about it.
    message = message.encode("utf-8", "replace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


_VARIANTS = {"body", "str", "int", "float", "bool"}
"""Words in a path that the client did not write."""


def answer_fault(error: Exception) -> JSONResponse:
    """Return the response to an error."""
    match error:
        case UnknownModelError():
            body = error_body(str(error), param="model", code="model_not_found")
            return JSONResponse(body, 404)
        case ContextError():
            return JSONResponse(error_body(str(error), code="context_length_exceeded"), 400)
        case QueueFullError():
            body = error_body(str(error), "rate_limit_error", code="rate_limit_exceeded")
            return JSONResponse(body, 429, {"retry-after": "1"})
        case NotReadyError():
            body = error_body(str(error), "server_error", code="not_ready")
            return JSONResponse(body, 503, {"retry-after": "1"})
        case FivefoldError():
            return JSONResponse(error_body(str(error)), 400)
    logger.error("a request failed: a defect", exc_info=error)
    return JSONResponse(error_body("The server failed; its log says why", "server_error"), 500)


def add_handlers(app: FastAPI) -> None:
    """Let an app answer every fault in one shape."""

    async def on_fault(_: Request, error: Exception) -> Response:
        return answer_fault(error)

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError), "registered for nothing else"
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if _is_field(part))
        if first["type"] == "json_invalid":
            return JSONResponse(error_body(f"The body is not JSON: {first['ctx']['error']}"), 400)
        message = f"`{param}`: {first['msg']}" if param else str(first["msg"])
        return JSONResponse(error_body(message, param=param or None), 400)

    async def on_status(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for nothing else"
        code = "not_found" if error.status_code == 404 else None
        body = error_body(str(error.detail), code=code)
        return JSONResponse(body, error.status_code, error.headers)

    async def on_gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_status)
    app.add_exception_handler(FivefoldError, on_fault)
    app.add_exception_handler(ClientGoneError, on_gone)
    app.add_exception_handler(Exception, on_fault)


def _is_field(part: str | int) -> bool:
    """Is a part of pydantic's path a field or an index, and not the variant of a union?"""
    if isinstance(part, int):
        return True
    return re.fullmatch(r"[a-z_]+", part) is not None and part not in _VARIANTS


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_end(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_for_end(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
