"""What a rank sent: calls and bytes of each collective, by operation and group.

Bytes are those of the bandwidth-optimal algorithm, which the formulas of `plan.communication` count
too: what leaves this rank if no byte travels twice in vain. A backend that moves more is slower
than its formula; the ledger says what the program asked for.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Total:
    """Sum over the calls of one operation in one group."""

    calls: int = 0
    """Number of calls."""
    sent_bytes: float = 0.0
    """Bytes that this rank sent."""


class Ledger:
    """Totals since the start or the last `reset`."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], Total] = {}

    def record(self, operation: str, group: str, sent_bytes: float) -> None:
        """Add one call."""
        before = self.totals.get((operation, group), Total())
        self.totals[operation, group] = Total(before.calls + 1, before.sent_bytes + sent_bytes)

    def sent_bytes(self, operation: str | None = None, group: str | None = None) -> float:
        """Return the bytes sent by one operation or all, in one group or all."""
        return sum(
            total.sent_bytes
            for (name, where), total in self.totals.items()
            if operation in (None, name) and group in (None, where)
        )

    def calls(self, operation: str | None = None, group: str | None = None) -> int:
        """Return the number of calls of one operation or all, in one group or all."""
        return sum(
            total.calls
            for (name, where), total in self.totals.items()
            if operation in (None, name) and group in (None, where)
        )

    def reset(self) -> None:
        """Start at nothing."""
        self.totals.clear()
