"""The other end of `worker`: a process that runs functions by name until its input ends.

Started as a script, so that neither the parent's main module nor torch is imported. One JSON
object a line comes in, one goes out. Whatever the functions print goes to standard error, so that
it cannot be taken for a reply. Surprise: the time limit is the parent's, which kills; the watchdog
here fires later, from a thread of C that needs no interpreter lock, for a parent that was itself
killed while a function hung.
"""

import faulthandler
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

_DETAIL_CHARACTERS = 500
_VALUE_CHARACTERS = 10_000


def main() -> None:
    """Answer requests until the input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - pathlib costs this start 10 ms
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    greeting = json.loads(requests.readline())
    sys.path[:] = greeting["path"]
    memory_bytes = greeting["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    functions: dict[str, Callable[..., Any]] = {}
    _reply(replies, {"kind": "ready"})
    for line in requests:
        _reply(replies, _answer(json.loads(line), functions))


def _answer(request: dict[str, Any], functions: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    faulthandler.dump_traceback_later(request["watchdog_seconds"], exit=True)
    target = request["target"]
    try:
        if target not in functions:
            from fivefold.verify.target import load_target

            functions[target] = load_target(target)
            return {"kind": "loaded"}
        value = functions[target](request["answer"], request["arguments"])
        text = json.dumps(value, default=_plain)
        if len(text) > _VALUE_CHARACTERS:
            return {"kind": "raised", "detail": f"no error, but returned {len(text)} characters"}
        return {"kind": "returned", "value": json.loads(text)}
    except MemoryError:
        return {"kind": "memory", "detail": "out of memory"}
    except BaseException as error:  # noqa: BLE001 - a function may also call sys.exit
        return {"kind": "raised", "detail": _describe(error)}
    finally:
        faulthandler.cancel_dump_traceback_later()


def _plain(value: object) -> Any:
    """Turn a scalar of numpy or torch into Python's."""
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"a value of type {type(value).__name__} is no number")
    return item()


def _describe(error: BaseException) -> str:
    place, line = "", 0
    trace = error.__traceback__
    while trace is not None:
        place, line = os.path.basename(trace.tb_frame.f_code.co_filename), trace.tb_lineno  # noqa: PTH119
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} ({place}:{line})"[:_DETAIL_CHARACTERS]


def _reply(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
