"""The HTTP application: all routes of one served model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fivefold.serve.chat import chat_router
from fivefold.serve.complete import completion_router
from fivefold.serve.control import control_router, state_router
from fivefold.serve.fault import add_handlers
from fivefold.serve.native import generate_router
from fivefold.serve.served import Served


def make_app(served: Served) -> FastAPI:
    """Return the application; its end aborts what runs and ends the engine's thread."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(served.worker.close)

    app = FastAPI(title="Fivefold", lifespan=life)
    add_handlers(app)
    for make in (chat_router, completion_router, generate_router, control_router, state_router):
        app.include_router(make(served))
    return app
