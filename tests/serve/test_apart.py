"""Work beside the engine's thread: it runs elsewhere, and nothing stays of its thread."""

import threading

import pytest

from fivefold.serve.apart import apart


def test_apart_runs_on_another_thread_that_has_ended_when_the_caller_goes_on() -> None:
    thread = apart(threading.current_thread)
    thread.join(timeout=5)

    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_apart_raises_the_error_of_the_work_in_the_caller() -> None:
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        apart(fail)
