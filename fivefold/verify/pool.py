"""Worker processes that are kept and reused, each replaced when it dies.

Waiting for a free process does not count against a call's time limit: the clock starts with the
call. A process starts when it is first needed, and the one that was used last is taken first, so
that a light load keeps one.
"""

import queue
import threading
from collections import Counter
from typing import Any

from fivefold.errors import ConfigError
from fivefold.verify.config import VerifierConfig
from fivefold.verify.worker import Outcome, Worker


class WorkerPool:
    """Up to `config.workers` processes for any number of threads; close it when done."""

    def __init__(self, config: VerifierConfig) -> None:
        """Start nothing yet."""
        self._config = config
        self._slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(config.workers):
            self._slots.put(None)
        self._lock = threading.Lock()
        self._known_targets: set[str] = set()
        self._is_closed = False
        self.counts: Counter[str] = Counter()
        """Outcomes by kind, and `started` processes."""

    def run(self, target: str, answer: str, arguments: dict[str, Any]) -> Outcome:
        """Call a function by its name in a free process.

        Raises:
            ConfigError: the function could not be imported, nor ever before.
        """
        worker = self._slots.get()
        try:
            assert not self._is_closed, "a closed pool runs nothing"
            if worker is None:
                worker = Worker(self._config)
                self._count("started")
            outcome = worker.run(target, answer, arguments)
        finally:
            if worker is not None and not worker.is_alive:
                worker.close()
                worker = None
            self._slots.put(worker)
        self._count(outcome.kind)
        if outcome.kind != "unloadable":
            self._known_targets.add(target)
        elif target not in self._known_targets:
            raise ConfigError(
                expected=f"the function `{target}`",
                found=outcome.detail,
                fix="Correct its name, or raise the verifier's `start_seconds` or `memory_bytes`",
            )
        return outcome

    def close(self) -> None:
        """End all processes, after the calls that are under way."""
        self._is_closed = True
        for _ in range(self._config.workers):
            worker = self._slots.get()
            if worker is not None:
                worker.close()
        for _ in range(self._config.workers):
            self._slots.put(None)  # a late caller meets the assertion instead of waiting

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1
