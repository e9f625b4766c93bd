"""Weight gradients put off until the schedule has time for them.

The zero-bubble schedules split the backward pass: the gradient of a stage's input goes at once,
that of its weights later (arXiv 2401.10241, section 2). Products made by `deferred` compute only
the first and leave with the store what the second needs, inputs and incoming gradients; the
closure that `take` returns does the rest for one microbatch. Sources of the form: DualPipe's
WeightGradStore, Transformer Engine's delayed weight gradients.

A ledger counts the bytes held, each storage once however many products share it, and every entry
put off, computed, and computed early because the bound on bytes asked for it. Surprise: a weight
that a microbatch uses several times (the MTP layer, once a depth) has its contributions summed
before they reach `grad`, as autograd does it, so that the bits agree with an undeferred pass.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fivefold.parallel.offload_ledger import OffloadLedger


@dataclass(frozen=True)
class Deferred:
    """One product's weight gradients, not computed yet."""

    weights: tuple[nn.Parameter, ...]
    """Whose gradients."""
    compute: Callable[..., tuple[Tensor, ...]]
    """Makes them from `kept`, in the order of `weights`."""
    kept: tuple[Tensor, ...]
    """Inputs and incoming gradients."""


@dataclass
class StoreLedger:
    """What passed through a store since it was made."""

    deferred: int = 0
    """Entries put off."""
    computed: int = 0
    """Entries computed, each once."""
    early: int = 0
    """Of those, before their turn."""
    held_bytes: int = 0
    """Bytes held now."""
    peak_bytes: int = 0
    """Most bytes held at once."""


class WeightGradientStore:
    """The deferred weight gradients of one stage, by microbatch in the order of backward passes."""

    def __init__(
        self, limit_bytes: int | None = None, activations: OffloadLedger | None = None
    ) -> None:
        """Hold at most `limit_bytes` between backward passes; None: whatever the schedule asks.

        Beyond it the oldest microbatches are computed before their turn. `activations` counts what
        the device holds for the backward, where that is watched.
        """
        self.limit_bytes, self._activations = limit_bytes, activations
        self.ledger = StoreLedger()
        self._current: deque[Deferred] = deque()
        self._waiting: dict[int, deque[Deferred]] = {}
        self._taken = 0
        self._holders: Counter[int] = Counter()

    def put(self, entry: Deferred) -> None:
        """Add an entry to the microbatch whose backward pass runs."""
        self._current.append(entry)
        self.ledger.deferred += 1
        for tensor in entry.kept:
            storage = tensor.untyped_storage()
            self._holders[storage.data_ptr()] += 1
            if self._holders[storage.data_ptr()] == 1:
                self.ledger.held_bytes += storage.nbytes()
                if self._activations is not None:
                    self._activations.hold(storage.data_ptr(), storage.nbytes())
        self.ledger.peak_bytes = max(self.ledger.peak_bytes, self.ledger.held_bytes)

    def take(self) -> Callable[[], None]:
        """Close the microbatch whose backward pass ended; the result computes what it put off."""
        number, self._taken = self._taken, self._taken + 1
        self._waiting[number] = self._current
        self._current = deque()
        while self.limit_bytes is not None and self.ledger.held_bytes > self.limit_bytes:
            oldest = next(iter(self._waiting))
            self.ledger.early += len(self._waiting[oldest])
            self._compute(oldest)
        return lambda: self._compute(number)

    def check_idle(self) -> None:
        """Assert that everything put off has been computed and nothing is held."""
        assert not self._current, f"{len(self._current)} weight gradients outside a microbatch"
        assert not self._waiting, f"weight gradients of {len(self._waiting)} microbatches wait"
        assert self.ledger.deferred == self.ledger.computed, "a weight gradient was lost"
        assert self.ledger.held_bytes == 0, f"{self.ledger.held_bytes} bytes held by nothing"

    @torch.no_grad()
    def _compute(self, number: int) -> None:
        """Add one microbatch's gradients to those of the weights, unless it was done early."""
        entries = self._waiting.pop(number, deque())
        left = Counter(weight for entry in entries for weight in entry.weights)
        sums: dict[nn.Parameter, Tensor] = {}
        while entries:
            entry = entries.popleft()
            for weight, gradient in zip(entry.weights, entry.compute(*entry.kept), strict=True):
                total = sums.pop(weight) + gradient if weight in sums else gradient
                left[weight] -= 1
                if left[weight]:
                    sums[weight] = total
                else:
                    add_gradient(weight, total)
            self._drop(entry)
            self.ledger.computed += 1

    def _drop(self, entry: Deferred) -> None:
        for tensor in entry.kept:
            storage = tensor.untyped_storage()
            self._holders[storage.data_ptr()] -= 1
            if not self._holders[storage.data_ptr()]:
                del self._holders[storage.data_ptr()]
                self.ledger.held_bytes -= storage.nbytes()
                if self._activations is not None:
                    self._activations.drop(storage.data_ptr(), storage.nbytes())


def add_gradient(weight: nn.Parameter, gradient: Tensor) -> None:
    """Add to `grad` in place, or set it where there is none."""
    if weight.grad is None:
        weight.grad = gradient
    else:
        weight.grad += gradient
