"""`fivefold serve`: an address, a line that says what to try, and an orderly end.

SIGTERM or SIGINT stops taking connections and lets requests finish for a while; what still runs
then is aborted, and the engine's thread ends. A second signal aborts it at once.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import uvicorn

from fivefold.errors import ConfigError
from fivefold.serve.app import make_app
from fivefold.serve.config import EngineConfig
from fivefold.serve.served import Served, open_served


def serve(
    checkpoint: Path,
    *,
    host: str,
    port: int,
    device: str,
    threads: int | None,
    config: EngineConfig,
    name: str | None,
    grace_seconds: int,
    say: Callable[[str], None],
) -> None:
    """Serve a checkpoint until a signal comes.

    Raises:
        ConfigError: the address is not free.
        MissingFileError, CorruptFileError, MismatchError: see `open_served`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    # The address first: a model takes its time to load, and a busy port should not.
    with listen(host, port) as listener:
        served = open_served(checkpoint, device=device, config=config, name=name)
        for line in start_lines(served, listener, device):
            say(line)
        server = Server(served, grace_seconds=grace_seconds)
        asyncio.run(server.run_until_signal(listener))
        say("stopped")


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 takes any free one.

    Raises:
        ConfigError: the address is taken, or not this machine's.
    """
    try:
        if not 0 <= port <= 65_535:
            raise OSError(0, "no port between 0 and 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            expected=f"a free address at {host}:{port}",
            found=error.strerror or str(error),
            fix="Choose another with `--host` or `--port`; `--port 0` takes any free port",
        ) from error


def start_lines(served: Served, listener: socket.socket, device: str) -> list[str]:
    """Return what is served where, and a command to try."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    model = served.engine.model
    parameters = sum(p.numel() for p in model.parameters())
    mode = ", deterministic" if served.engine.config.deterministic else ""
    body = '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}'
    shape = f"{parameters / 1e6:.1f}M parameters, context {served.context_tokens:,} tokens"
    where = f"{device}, {torch.get_num_threads()} threads{mode}"
    return [
        f"serving {served.name} at {address}/v1 ({shape}, {where})",
        f"try: curl {address}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
    ]


class Server(uvicorn.Server):
    """A uvicorn server whose signals end it without killing the process."""

    def __init__(self, served: Served, *, grace_seconds: int = 10) -> None:
        """Serve `served`; requests have `grace_seconds` to finish after a signal."""
        config = uvicorn.Config(
            make_app(served),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=grace_seconds,
            backlog=2048,
        )
        super().__init__(config)
        self._worker = served.worker
        self._aborting: asyncio.Future[int] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `run_until_signal`; uvicorn would raise them again at the end."""
        yield

    async def run_until_signal(self, listener: socket.socket) -> None:
        """Serve on a bound socket."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        await self.serve(sockets=[listener])

    def _end(self) -> None:
        if self.should_exit:
            self._aborting = asyncio.ensure_future(self._worker.call(lambda e: e.abort()))
        self.should_exit = True
