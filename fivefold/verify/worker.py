"""A process that runs one function at a time, and that can be killed.

A time limit inside a process cannot stop code that holds the interpreter lock, and a signal reaches
the main thread only; a limit on another process always works. The worker is a plain subprocess: no
fork of a parent with threads, no import of the user's main module. It leads a process group of its
own, so that what it started dies with it.

Surprise: reading and writing have no time limit of their own. A timer kills the process, and every
blocked call on its pipes then ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fivefold.verify.config import VerifierConfig

_SCRIPT = Path(__file__).with_name("worker_process.py")
_WATCHDOG_FACTOR = 2
"""The process ends itself after so many times the limit, if nobody killed it."""
_SHOWN_BYTES = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a call."""

    kind: Literal["returned", "raised", "unloadable", "timeout", "crash", "memory"]
    """`raised` is the function's own fault; `unloadable`: the process did not start or could not
    import it; the last three cost the process its life."""
    detail: str = ""
    value: Any = None
    """JSON value that the function returned."""


class Worker:
    """One process; not for several threads at a time."""

    def __init__(self, config: VerifierConfig) -> None:
        """Start the process; nothing waits for it yet."""
        self._config = config
        self._targets: set[str] = set()
        self._is_ready = False
        self._was_late = False
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self.is_alive = True
        """May it be asked again?"""

    def run(self, target: str, answer: str, arguments: dict[str, Any]) -> Outcome:
        """Call the function that `target` names; the time limit is that of the call alone."""
        if not self._is_ready:
            outcome = self._greet()
            if outcome.kind != "returned":
                return Outcome("unloadable", outcome.detail)
        request = {"target": target, "answer": answer, "arguments": arguments}
        if target not in self._targets:
            outcome = self._ask(request, self._config.start_seconds)
            if outcome.kind != "returned":
                return Outcome("unloadable", outcome.detail)
            self._targets.add(target)
        self._errors.truncate(0)
        return self._ask(request, self._config.limit_seconds)

    def close(self) -> None:
        """End the process and whatever it started."""
        self.is_alive = False
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "both are pipes"
            # What was still to be written has no reader any more.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()
        self._errors.close()

    def _greet(self) -> Outcome:
        greeting = {"path": sys.path, "memory_bytes": self._config.memory_bytes}
        outcome = self._exchange(greeting, self._config.start_seconds)
        self._is_ready = outcome.kind == "returned"
        return outcome

    def _ask(self, request: dict[str, Any], seconds: float) -> Outcome:
        watched = {**request, "watchdog_seconds": _WATCHDOG_FACTOR * seconds}
        return self._exchange(watched, seconds)

    def _exchange(self, request: dict[str, Any], seconds: float) -> Outcome:
        self._was_late = False
        timer = threading.Timer(seconds, self._be_late)
        timer.start()
        try:
            line = self._send_and_read(json.dumps(request).encode() + b"\n")
        finally:
            timer.cancel()
            timer.join()
        self.is_alive = self.is_alive and not self._was_late
        if line.endswith(b"\n"):
            return self._read_reply(json.loads(line))
        self.is_alive = False
        if self._was_late:
            return Outcome("timeout", f"no result within {seconds:g} s")
        self._kill()
        return Outcome("crash", f"the process ended with code {self._process.wait()}{self._said()}")

    def _send_and_read(self, line: bytes) -> bytes:
        """Return the reply, or less than a line of it where the process ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None, "a pipe"
        assert stdout is not None, "a pipe"
        try:
            stdin.write(line)
            stdin.flush()
        except BrokenPipeError:
            return b""
        return stdout.readline()

    def _read_reply(self, reply: dict[str, Any]) -> Outcome:
        match reply["kind"]:
            case "raised":
                return Outcome("raised", reply["detail"])
            case "memory":
                self.is_alive = False
                limit = self._config.memory_bytes >> 20
                return Outcome("memory", f"more than {limit} MiB of memory")
        return Outcome("returned", value=reply.get("value"))

    def _be_late(self) -> None:
        self._was_late = True
        self._kill()

    def _kill(self) -> None:
        if self._process.returncode is not None:
            return  # reaped: its number may be another's by now
        # A group may be gone by itself.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _said(self) -> str:
        """Return the end of what the process wrote to standard error."""
        self._errors.seek(0)
        text = self._errors.read()[-_SHOWN_BYTES:].decode(errors="replace").strip()
        return f": {text.splitlines()[-1]}" if text else ""
