"""Sending a request again after a fault that may pass."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fivefold.text.completer import EndpointError, OverloadedError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Retry:
    """Tries a request `retries` times more, and waits twice as long each time."""

    def __init__(self, retries: int, seconds: float) -> None:
        """Wait `seconds` before the second try."""
        self._retries, self._seconds = retries, seconds
        self.retried = 0
        """Requests that were sent again."""

    async def __call__(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return what `request` finds.

        Raises:
            EndpointError, OverloadedError: the last try failed too.
        """
        for attempt in range(self._retries):
            try:
                return await request()
            except (EndpointError, OverloadedError) as error:
                self.retried += 1
                logger.warning("a request is sent again: %s", error)
                await asyncio.sleep(self._seconds * 2**attempt)
        return await request()
