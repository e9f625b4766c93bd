"""Stage 2 of ZeRO: gradients leave as the backward makes them, so that whole ones never exist.

Hooks take each gradient from its parameter into a bucket; a bucket that has all of its gradients is
summed over the ranks, while the next ones fill, and this rank keeps what it updates. Every rank
sends the same buckets in the same order whatever its own backward made, with zeros for the rest.
What a bucket is and how it is summed is `zero`'s and `row_bucket`'s.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import torch.distributed as dist
from torch import Tensor, nn

_IN_FLIGHT = 2
"""Sums that may be under way at a time; each holds one whole bucket."""


class StreamedBucket(Protocol):
    """Some parameters whose gradients travel together."""

    @property
    def names(self) -> Collection[str]:
        """The parameters."""
        ...

    @property
    def whole_bytes(self) -> int:
        """Bytes of the buffer that this rank fills."""
        ...

    def empty_whole(self) -> Tensor:
        """Return that buffer, uninitialised."""
        ...

    def pack(self, whole: Tensor, name: str, tensor: Tensor | None) -> None:
        """Write a gradient (None: zeros) into its place."""
        ...

    def start(self, whole: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Begin to sum over the ranks; the tensor has arrived once the work is waited for."""
        ...

    def add(self, total: Tensor | None, arrived: Tensor) -> Tensor:
        """Add what has arrived to the sum of the microbatches before, None being nothing."""
        ...


class GradientStream:
    """The gradients of one step on their way into sums of this rank's rows."""

    def __init__(
        self, buckets: Sequence[StreamedBucket], computed: Mapping[str, nn.Parameter]
    ) -> None:
        """Take the gradients of the parameters of `buckets` from `computed`."""
        self._buckets = buckets
        self.peak_bytes = 0
        """Most bytes of whole buckets that existed at a time."""
        self._sums: list[Tensor | None] = [None] * len(buckets)
        self._seen: set[str] = set()
        self._filling: dict[int, Tensor] = {}
        self._missing: dict[int, set[str]] = {}
        self._next = 0
        self._pending: list[tuple[int, Tensor, Tensor, dist.Work | None]] = []
        self._hooks = [
            computed[name].register_post_accumulate_grad_hook(self._hook(index, name))
            for index, bucket in enumerate(buckets)
            for name in bucket.names
        ]

    def collect(self) -> None:
        """Send what the backward left of its buckets, and wait for all."""
        while self._next < len(self._buckets):
            self._launch()
        while self._pending:
            self._land()
        self._next = 0

    def take(self) -> tuple[list[Tensor | None], set[str]]:
        """Hand over the step's sums and the parameters that had a gradient on this rank."""
        taken = self._sums, self._seen
        self._sums, self._seen = [None] * len(self._buckets), set()
        return taken

    def close(self) -> None:
        """Leave gradients where backward puts them."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, index: int, name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            if index not in self._filling:
                self._open(index)
            self._buckets[index].pack(self._filling[index], name, parameter.grad)
            parameter.grad = None
            self._seen.add(name)
            self._missing[index].discard(name)
            # In order only: the ranks' collectives must meet.
            while self._next < len(self._buckets) and self._missing.get(self._next) == set():
                self._launch()

        return take

    def _open(self, index: int) -> None:
        bucket = self._buckets[index]
        self._filling[index] = bucket.empty_whole()
        self._missing[index] = set(bucket.names)
        in_use = [*self._filling, *(pending[0] for pending in self._pending)]
        now = sum(self._buckets[i].whole_bytes for i in in_use)
        self.peak_bytes = max(self.peak_bytes, now)

    def _launch(self) -> None:
        """Send the next bucket, with zeros for what this rank's backward did not make."""
        index, self._next = self._next, self._next + 1
        if index not in self._filling:
            self._open(index)
        bucket, whole = self._buckets[index], self._filling.pop(index)
        for name in self._missing.pop(index):
            bucket.pack(whole, name, None)
        while len(self._pending) >= _IN_FLIGHT:
            self._land()
        self._pending.append((index, whole, *bucket.start(whole)))

    def _land(self) -> None:
        """Wait for the oldest bucket and add its sum to those of the microbatches before."""
        index, _, arrived, work = self._pending.pop(0)
        if work is not None:
            work.wait()
        self._sums[index] = self._buckets[index].add(self._sums[index], arrived)
