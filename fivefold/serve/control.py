"""The native routes that steer an engine: health, load, pause, abort, flush, weights, metrics.

Source: SGLang's HTTP server, whose names and answers these have, so that a trainer that drives
SGLang drives this. Whoever reaches these routes can read directories as weights: serve on an
address that only trusted machines reach.
"""

import asyncio
import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import ValidationError
from torch import Tensor

from fivefold.errors import ConfigError, CorruptFileError, FivefoldError
from fivefold.serve.apart import apart
from fivefold.serve.engine import Engine
from fivefold.serve.exposition import CONTENT_TYPE, expose, read_engine
from fivefold.serve.fault import answer_fault
from fivefold.serve.native_schema import (
    VERSION_PATTERN,
    AbortBody,
    DiskWeightsBody,
    PauseBody,
    TensorWeightsBody,
    Version,
)
from fivefold.serve.push import read_disk_weights, read_tensor_weights
from fivefold.serve.request import SamplingParams
from fivefold.serve.served import Served, not_ready

_PROBE_SECONDS = 20.0
"""SGLang's own limit of a health check."""


def control_router(served: Served) -> APIRouter:
    """Return the routes that change what the engine does."""
    router = APIRouter(tags=["control"])

    @router.post("/pause_generation")
    async def pause_generation(body: PauseBody) -> dict[str, str]:
        """Stop stepping; abort what runs, keep its keys, or send it back to the queue."""
        await served.call(lambda engine: engine.pause(body.mode))
        return {"message": "Generation paused successfully.", "status": "ok"}

    @router.post("/continue_generation")
    async def continue_generation() -> dict[str, str]:
        """Undo a pause."""
        await served.call(lambda engine: engine.proceed())
        return {"message": "Generation continued successfully.", "status": "ok"}

    @router.post("/abort_request")
    async def abort_request(body: AbortBody) -> dict[str, int]:
        """End one request, or all, with what they have; an unknown one is no error."""
        rid = None if body.abort_all else body.rid
        return {"aborted": await served.call(lambda engine: engine.abort(rid))}

    @router.get("/flush_cache", include_in_schema=False)
    @router.post("/flush_cache")
    async def flush_cache() -> Response:
        """Forget all kept prefixes; refused while requests run."""
        if await served.call(lambda engine: engine.flush_cache()):
            return PlainTextResponse("Cache flushed.\n")
        return PlainTextResponse("Not flushed: requests are running.\n", 400)

    @router.post("/update_weights_from_disk")
    async def update_weights_from_disk(body: DiskWeightsBody) -> Response:
        """Replace all weights by those of a checkpoint, between two steps, or none."""
        directory = Path(body.model_path)
        return await _push(
            served,
            lambda model: read_disk_weights(model, directory),
            body.weight_version,
            aborts=body.abort_all_requests,
        )

    @router.post("/update_weights_from_tensor", openapi_extra=_TENSOR_SCHEMA)
    async def update_weights_from_tensor(
        request: Request, weight_version: str | None = None
    ) -> Response:
        """Replace all weights by safetensors bytes: the raw body, or base64 in JSON."""
        try:
            files, version, aborts = await _read_tensors(request, weight_version)
        except FivefoldError as error:
            return _refuse_push(error)
        return await _push(
            served, lambda model: read_tensor_weights(model, files), version, aborts=aborts
        )

    return router


def state_router(served: Served) -> APIRouter:
    """Return the routes that only look."""
    router = APIRouter(tags=["state"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Answer while the engine's thread takes work."""
        await served.call(lambda engine: engine.version)
        return {"status": "ok"}

    @router.get("/health_generate")
    async def health_generate() -> dict[str, str]:
        """Generate one token; 503 while paused, or if it takes 20 seconds."""
        if await served.call(lambda engine: engine.is_paused):
            raise not_ready("a pause; /continue_generation ends it")
        params = SamplingParams(max_new_tokens=1, temperature=0)
        rid = served.new_name("health")
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await served.complete([0], params, rid=rid, priority=1)
        except TimeoutError:
            raise not_ready(f"no token within {_PROBE_SECONDS:g} seconds") from None
        return {"status": "ok"}

    @router.get("/get_load")
    async def get_load() -> list[dict[str, int]]:
        """Return requests and cached tokens of each data-parallel rank; here there is one."""
        load = await served.call(lambda engine: engine.load())
        return [
            {
                "dp_rank": 0,
                "num_reqs": load["running_requests"] + load["waiting_requests"],
                "num_waiting_reqs": load["waiting_requests"],
                "num_tokens": load["used_blocks"] * served.engine.config.block_tokens,
            }
        ]

    @router.get("/get_model_info")
    async def get_model_info() -> dict[str, Any]:
        """Return what is served."""
        return {
            "model_path": served.checkpoint,
            "tokenizer_path": served.checkpoint,
            "served_model_name": served.name,
            "is_generation": True,
            "preferred_sampling_params": None,
            "max_model_len": served.context_tokens,
            "vocab_size": served.vocab_size,
            "weight_version": str(served.engine.version),
        }

    @router.get("/get_weight_version")
    async def get_weight_version() -> dict[str, str]:
        """Return the version of the weights."""
        return {"weight_version": str(served.engine.version)}

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return counters in Prometheus' text format."""
        text = expose(
            await served.call(read_engine),
            {
                "time_to_first_token_seconds": (
                    served.first_token_seconds,
                    "From a streamed request to its first token.",
                ),
                "request_seconds": (served.request_seconds, "From a request to its end."),
            },
        )
        return Response(text, headers={"content-type": CONTENT_TYPE})

    return router


_TENSOR_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": TensorWeightsBody.model_json_schema()},
        },
    }
}


async def _read_tensors(
    request: Request, weight_version: str | None
) -> tuple[list[bytes], Version | None, bool]:
    raw = await request.body()
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        if weight_version is not None and not re.fullmatch(VERSION_PATTERN, weight_version):
            raise ConfigError(
                expected="`weight_version` as a number", found=repr(weight_version), fix="Count up"
            )
        return [raw], weight_version, False
    try:
        body = TensorWeightsBody.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            expected=f"a valid body ({where}: {first['msg']})",
            found="another",
            fix="See the schema of this route at /docs",
        ) from error
    try:
        files = [base64.b64decode(f, validate=True) for f in body.serialized_named_tensors]
    except ValueError as error:
        raise CorruptFileError(
            expected="safetensors files in base64", found=str(error), fix="Encode them again"
        ) from error
    return files, body.weight_version, body.abort_all_requests


async def _push(
    served: Served,
    read: Callable[[Any], dict[str, Tensor]],
    version: Version | None,
    *,
    aborts: bool,
) -> Response:
    def replace(engine: Engine) -> tuple[int, int]:
        weights_version = engine.update_weights(weights, None if version is None else int(version))
        # Aborted only now: a push that is refused must not have ended anything.
        return weights_version, engine.abort() if aborts else 0

    async with served.pushing:
        try:
            weights = await asyncio.to_thread(apart, lambda: read(served.engine.model))
            new, ended = await served.call(replace)
        except FivefoldError as error:
            return _refuse_push(error)
    message = f"Weight version updated to {new}."
    content = {"success": True, "message": message, "num_paused_requests": ended}
    return JSONResponse({**content, "weight_version": str(new)})


def _refuse_push(error: FivefoldError) -> Response:
    """Return SGLang's answer to a failed push, with OpenAI's error object beside it."""
    refusal = answer_fault(error)
    error_object = bytes(refusal.body).decode()
    body = f'{{"success":false,"num_paused_requests":0,{error_object[1:]}'
    return Response(body, refusal.status_code, media_type="application/json")
