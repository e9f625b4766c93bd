"""A served model: what every route needs, and the two ways to run a request.

Holds the engine's worker, the tokenizer and the name under which the model answers. Routes refuse
here what the engine would refuse, so that a stream has its status code before it has its first
token.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fivefold.errors import FivefoldError, MismatchError
from fivefold.models.convert import read_checkpoint
from fivefold.serve.apart import apart
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.serve.exposition import Histogram
from fivefold.serve.request import RequestError, SamplingParams
from fivefold.serve.worker import Completion, EngineEndedError, NewToken, Worker
from fivefold.text.tokenizer import Tokenizer, load_tokenizer

T = TypeVar("T")
Stops = Callable[[Sequence[int]], bool]


class ContextError(RequestError):
    """A prompt that the context has no room for."""


class NotReadyError(FivefoldError, RuntimeError):
    """The engine cannot answer now: it is paused, or its thread has ended."""


def not_ready(found: str) -> NotReadyError:
    """Return the error that says why."""
    return NotReadyError(
        expected="an engine that answers", found=found, fix="Try again, or start it anew"
    )


class UnknownModelError(FivefoldError, LookupError):
    """A request for a model that is not served here."""


@dataclass
class Served:
    """One model behind one address."""

    worker: Worker
    tokenizer: Tokenizer
    name: str
    checkpoint: str
    engine: Engine
    """For what never changes (shape, sizes); everything else goes through `worker.call`."""
    created: int = field(default_factory=lambda: int(time.time()))
    first_token_seconds: Histogram = field(default_factory=Histogram)
    """From a streamed request to its first token."""
    request_seconds: Histogram = field(default_factory=Histogram)
    """From a request to its end."""
    pushing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while weights are read and replaced."""
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return self.engine.context_tokens

    @property
    def vocab_size(self) -> int:
        """Ids of the model."""
        return self.engine.model.config.vocab_size

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an output by themselves."""
        return self.engine.model.config.stop_token_ids

    def new_name(self, kind: str) -> str:
        """Return a name for a request that nobody else has."""
        return f"{kind}-{self.created}-{next(self._numbers)}"

    def check_model(self, name: str | None) -> None:
        """Refuse a model of another name; None means the one that is there.

        Raises:
            UnknownModelError: with the name of the served one.
        """
        if name is not None and name != self.name:
            raise UnknownModelError(
                expected=f"the model `{self.name}`",
                found=repr(name),
                fix="Ask /v1/models what is served here",
            )

    def check_prompt(self, ids: Sequence[int], params: SamplingParams) -> None:
        """Refuse what the engine would refuse.

        Raises:
            ContextError: the prompt leaves no room for a token.
            RequestError: see `SamplingParams.check`.
        """
        params.check(self.vocab_size)
        room = self.context_tokens - (params.max_new_tokens > 0)
        if len(ids) > room:
            raise ContextError(
                expected=f"a prompt of at most {room} tokens, the model's context",
                found=f"{len(ids)} tokens",
                fix="Shorten the prompt",
            )

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Run a function of the engine between two steps.

        Raises:
            NotReadyError: its thread has ended.
        """
        faults: list[Exception] = []

        def guarded(engine: Engine) -> T | None:
            try:
                return function(engine)
            except Exception as error:  # noqa: BLE001  # raised again below
                faults.append(error)
                return None

        with _ended_is_not_ready():
            result = await self.worker.call(guarded)
        if faults:
            raise faults[0]
        return result  # pyright: ignore[reportReturnType]

    async def complete(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        rid: str,
        stops: Stops | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> Completion:
        """Run a request to its end."""
        began = time.perf_counter()
        self.check_prompt(ids, params)
        with _ended_is_not_ready():
            completion = await self.worker.generate(
                ids, params, rid=rid, stops=stops, priority=priority, salt=salt
            )
        self.request_seconds.add(time.perf_counter() - began)
        return completion

    async def stream(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        rid: str,
        stops: Stops | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> AsyncIterator[NewToken | Completion]:
        """Yield each token of a request, then the whole; closing it early aborts the request."""
        began = time.perf_counter()
        self.check_prompt(ids, params)
        events = self.worker.stream(ids, params, rid=rid, stops=stops, priority=priority, salt=salt)
        is_first = True
        with _ended_is_not_ready():
            async with aclosing(events) as events:  # pyright: ignore[reportArgumentType]
                async for event in events:
                    if is_first:
                        self.first_token_seconds.add(time.perf_counter() - began)
                        is_first = False
                    yield event
        self.request_seconds.add(time.perf_counter() - began)


@contextmanager
def _ended_is_not_ready() -> Iterator[None]:
    """Tell the client that the engine's thread has ended."""
    try:
        yield
    except EngineEndedError as error:
        raise not_ready(str(error)) from error


async def gather_all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results; the first error, or a cancelled caller, cancels the rest and waits."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merge(
    streams: Sequence[AsyncIterator[NewToken | Completion]],
) -> AsyncIterator[tuple[int, NewToken | Completion]]:
    """Yield (which stream, its event) as they come; closing it closes all streams."""
    queue: asyncio.Queue[tuple[int, NewToken | Completion] | BaseException] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[NewToken | Completion]) -> None:
        try:
            async with aclosing(stream) as events:  # pyright: ignore[reportArgumentType]
                async for event in events:
                    queue.put_nowait((index, event))
        except Exception as error:  # noqa: BLE001  # whatever it is, the reader gets it
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event[1], Completion)
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def open_served(
    checkpoint: Path, *, device: str, config: EngineConfig | None = None, name: str | None = None
) -> Served:
    """Load a checkpoint and its tokenizer, and start an engine on them.

    Raises:
        MissingFileError, CorruptFileError, MismatchError: the directory is not a whole checkpoint.
        ConfigError: the model cannot do what `config` asks.
    """
    tokenizer = load_tokenizer(checkpoint)
    model = apart(lambda: read_checkpoint(checkpoint, device=device))
    rows = model.config.vocab_size
    if tokenizer.vocab_size > rows:
        raise MismatchError(
            expected=f"a tokenizer of at most {rows} ids, the model's `vocab_size`",
            found=f"{tokenizer.vocab_size} ids in `{checkpoint}`",
            fix="Put the tokenizer that the model was trained with beside it",
        )
    engine = apart(lambda: Engine(model, config))
    return Served(Worker(engine), tokenizer, name or _name_of(checkpoint), str(checkpoint), engine)


def _name_of(checkpoint: Path) -> str:
    """Return the name of a directory, or of the stage that wrote it."""
    path = checkpoint.resolve()
    return path.parent.name if path.name == "checkpoint" else path.name
