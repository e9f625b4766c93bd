"""Work with tensors beside the engine's thread, on a thread of its own that ends with it.

OpenMP keeps a team of threads for each thread that has ever computed in parallel. Where all teams
together have more members than the machine has cores, GNU's runtime lets none of them wait busily
(`GOMP_SPINCOUNT` falls from 300,000 to 1,000), and an engine whose operators last microseconds then
pays a wake-up for each: it gave half as many tokens a second. So whatever computes in an engine's
process and is not the engine (loading, reading pushed weights) runs here, and its team ends with
its thread.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own, wait, and return its result or raise its error."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised again for the caller
            done.set_exception(error)

    threading.Thread(target=run, name="fivefold-apart", daemon=True).start()
    return done.result()
