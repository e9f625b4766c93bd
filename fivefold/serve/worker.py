"""An engine on a thread of its own, behind an async interface.

Servers live in an asyncio loop and must not wait for a forward. Everything that they
want of the engine is a function of it, put into an inbox that the thread empties between two steps:
requests, aborts, pauses, weights. Answers go back through the caller's own loop. A caller that is
cancelled (a client that went away) aborts its request, which frees its blocks.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from fivefold.serve.engine import Engine
from fivefold.serve.request import (
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprob,
    VersionSpan,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """What became of a request."""

    ids: list[int]
    """Output ids, a stop id included."""
    logprobs: list[TokenLogprob]
    """One entry an output id."""
    finish: FinishReason
    versions: list[VersionSpan]
    """Weights of the output ids, in order."""
    cached_tokens: int
    """Prompt tokens whose keys were there already."""
    prompt_logprobs: list[float | None]
    """From `prompt_logprobs_begin` on; empty where none were wanted."""
    routing: Tensor | None
    """Experts of each position, int16 of (positions, MoE layers, A); -1 where none was computed:
    cached prompt tokens and the last token."""
    drafted: int
    accepted: int


class NewToken(NamedTuple):
    """One step of a stream."""

    id: int
    logprob: TokenLogprob


def completion_of(request: Request) -> Completion:
    """Return the results of a finished request."""
    assert request.finish is not None, "the request is still running"
    return Completion(
        ids=request.output,
        logprobs=request.logprobs,
        finish=request.finish,
        versions=request.versions,
        cached_tokens=request.cached_tokens,
        prompt_logprobs=request.prompt_scores() if request.scores_prompt else [],
        routing=request.routing,
        drafted=request.drafted,
        accepted=request.accepted,
    )


class EngineEndedError(RuntimeError):
    """The engine's thread has ended."""


class Worker:
    """Owns an engine; use as an async context manager, or call `close`."""

    def __init__(self, engine: Engine, *, overlaps: bool = False) -> None:
        """Start the thread. `overlaps` plans a step while the one before runs."""
        self._engine = engine
        self._step = engine.step_overlapped if overlaps else engine.step
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="fivefold-engine", daemon=True)
        self._is_closed = False
        self._thread.start()

    async def __aenter__(self) -> "Worker":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Abort what is running and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Run a function of the engine between two steps: pause, update_weights, load, abort."""
        return await asyncio.wrap_future(self._post(function))

    async def generate(
        self,
        ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        rid: str | None = None,
        stops: Callable[[Sequence[int]], bool] | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> Completion:
        """Continue `ids` to the end.

        Raises:
            RequestError, QueueFullError: as `Engine.add`.
        """
        done: Future[Completion] = Future()

        def tell(request: Request) -> None:
            done.set_result(completion_of(request))

        request = await self._admit(
            lambda engine: engine.add(
                ids, params, rid=rid, stops=stops, priority=priority, salt=salt, on_finish=tell
            )
        )
        try:
            # Shielded: a cancelled caller aborts, and the engine still has somewhere to report to.
            return await asyncio.shield(asyncio.wrap_future(done))
        except asyncio.CancelledError:
            self._post(lambda engine: _abort(engine, request))
            raise

    async def stream(
        self,
        ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        rid: str | None = None,
        stops: Callable[[Sequence[int]], bool] | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> AsyncIterator[NewToken | Completion]:
        """Yield every new token, then the whole; closing the iterator early aborts the request.

        Raises:
            RequestError, QueueFullError: as `Engine.add`.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[NewToken | Completion] = asyncio.Queue()

        def put(event: NewToken | Completion) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        request = await self._admit(
            lambda engine: engine.add(
                ids,
                params,
                rid=rid,
                stops=stops,
                priority=priority,
                salt=salt,
                on_token=lambda request, token: put(NewToken(token, request.logprobs[-1])),
                on_finish=lambda request: put(completion_of(request)),
            )
        )
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Completion):
                    return
        finally:
            if request.finish is None:
                self._post(lambda engine: _abort(engine, request))

    async def score(self, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the raw log-probability of each token of each row; the first has none."""
        params = SamplingParams(max_new_tokens=0, prompt_logprobs_begin=0)
        done = await asyncio.gather(*(self.generate(ids, params) for ids in rows))
        return [completion.prompt_logprobs for completion in done]

    async def _admit(self, add: Callable[[Engine], Request]) -> Request:
        """Add a request; a caller that is cancelled on the way leaves none behind."""
        future = self._post(add)
        added = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(added)
        except asyncio.CancelledError:
            # Nobody else asks why it was refused, and asyncio would complain of that.
            added.add_done_callback(lambda done: done.cancelled() or done.exception())
            if not future.cancel():
                future.add_done_callback(self._drop)
            raise

    def _drop(self, added: "Future[Request]") -> None:
        """Abort what was added for a caller that has gone."""
        if not added.cancelled() and added.exception() is None:
            # An engine that has ended has aborted everything.
            with contextlib.suppress(EngineEndedError):
                self._post(lambda engine: _abort(engine, added.result()))

    def _post(self, function: Callable[[Engine], T]) -> "Future[T]":
        """Put a function into the inbox."""
        future: Future[T] = Future()
        with self._gate:
            if self._is_closed:
                raise EngineEndedError("the engine's thread has ended; its traceback says why")
            self._inbox.put(_Job(function, future))
        return future

    def _run(self) -> None:
        """Empty the inbox, step, and wait for the inbox where there is nothing to do."""
        is_busy = True
        try:
            while True:
                try:
                    job = self._inbox.get(block=not is_busy)
                except queue.Empty:
                    is_busy = self._step()
                    continue
                if job is None:
                    return
                job.run(self._engine)
                is_busy = True
        finally:
            # Also after a fault of a step: every caller hears of the end.
            with self._gate:
                self._is_closed = True
            self._engine.abort()
            while not self._inbox.empty():
                job = self._inbox.get()
                if job is not None:
                    job.future.cancel()
            self._engine.close()


class _Job(NamedTuple):
    """A function of the engine, and where its result goes."""

    function: Callable[[Engine], Any]
    future: Future[Any]

    def run(self, engine: Engine) -> None:
        """Call the function; its error is the caller's."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.function(engine))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is passed on
            self.future.set_exception(error)


def _abort(engine: Engine, request: Request) -> None:
    if request.finish is None:
        engine.abort(request.rid)
