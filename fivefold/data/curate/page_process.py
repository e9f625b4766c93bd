"""Extraction in a process of its own, which a page may hang or crash without taking others along.

The parser is C++ code over hostile input. A signal handler of Python would wait until such a call
returns, so each page is extracted in a child that the kernel ends when it has used its processor
time (the default action of SIGVTALRM); the page is then an error of the caller's, and the next one
gets a new child. Processor time, not wall time: a busy machine changes no result. Only a child that
says nothing for many times as long, because it waits for something, is ended by the clock.

Run as a module this file is the child: frames of a length and a pickle come in and go out.
"""

import contextlib
import pickle
import signal
import struct
import subprocess
import sys
import traceback
from multiprocessing.connection import wait
from types import TracebackType
from typing import IO, Any, Self

from fivefold.data.curate.web_page import Extracted, Extractor, PageForm, extract_page
from fivefold.errors import ConfigError

_LENGTH = struct.Struct("<Q")
_PATIENCE = 20
"""Seconds by the clock for each one of processor time."""
_LEAST_SECONDS = 60.0
"""By the clock, whatever the processor time: a child takes seconds to begin on a busy machine."""


class PageProcessError(Exception):
    """A page whose extraction failed, did not end, or ended its process."""


class PageProcess:
    """Extracts pages in a child process; a context manager that ends it."""

    def __init__(self, seconds: float) -> None:
        """Give each page so many seconds of processor time."""
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def extract(
        self,
        content: bytes,
        form: PageForm,
        charset: str,
        *,
        main_content: bool,
        extractor: Extractor = "resiliparse",
    ) -> Extracted:
        """Return what `extract_page` returns; text that needs no parser is read in this process.

        Raises:
            ConfigError: a package is missing, for this page and for all others of its kind.
            PageProcessError: with the child's trace, or with what ended it.
        """
        # Parsers of other people's formats may hang or crash; our own code cannot.
        if form not in ("html", "pdf"):
            return extract_page(content, form, charset)
        child = self._child or self._begin()
        assert child.stdin, "the child was begun with pipes"
        assert child.stdout, "the child was begun with pipes"
        try:
            _send(child.stdin, (content, form, charset, main_content, extractor, self._seconds))
            patience = max(_LEAST_SECONDS, _PATIENCE * self._seconds)
            if not wait([child.stdout.fileno()], patience):
                self._end()
                raise PageProcessError(f"no answer within {patience:g} s by the clock")
            answer = _receive(child.stdout)
        except (BrokenPipeError, EOFError):
            answer = None
        except BaseException:
            # Half a question or half an answer is under way: the next page needs a new child.
            self._end()
            raise
        if isinstance(answer, Extracted):
            return answer
        if isinstance(answer, ConfigError):
            raise answer
        raise PageProcessError(answer or self._what_ended())

    def _begin(self) -> "subprocess.Popen[bytes]":
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self._child

    def _what_ended(self) -> str:
        assert self._child, "there was a child"
        code = self._child.wait()
        self._end()
        if code == -signal.SIGVTALRM:
            return f"more than {self._seconds:g} s of processor time"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the page ended its process: {name}"

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                # What was not yet sent to a dead child is lost, as it should be.
                with contextlib.suppress(BrokenPipeError):
                    if pipe:
                        pipe.close()
            self._child = None


def _send(pipe: IO[bytes], value: object) -> None:
    content = pickle.dumps(value)
    pipe.write(_LENGTH.pack(len(content)) + content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """Return the next value; raises EOFError where there is none."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return pickle.loads(content)  # noqa: S301 - both ends are this file


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer pages until there are no more."""
    while True:
        try:
            content, form, charset, main_content, extractor, seconds = _receive(questions)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            answer: object = extract_page(
                content, form, charset, main_content=main_content, extractor=extractor
            )
        except ConfigError as error:
            answer = error
        # The trace goes to the parent, which quarantines the page.
        except Exception:  # noqa: BLE001
            answer = traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        _send(answers, answer)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
