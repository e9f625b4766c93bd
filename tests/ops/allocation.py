"""Recorders of what a piece of code allocates: its largest tensor, or all that lives at a time.

Storages count, not tensors: views and expanded tensors take no memory of their own.
"""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LargestTensor(TorchDispatchMode):
    """Records the numbers and the shape of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self.shape: tuple[int, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, Tensor):
                numbers = x.untyped_storage().nbytes() // x.element_size()
                if numbers > self.numbers:
                    self.numbers, self.shape = numbers, tuple(x.shape)
        return result


class AllocationLedger(TorchDispatchMode):
    """Adds up the bytes of storages that operations allocate, each for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        """Of the first tensor on each storage."""
        self.live_bytes = self.peak_bytes = 0
        self._live: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # What comes from outside the ledger was allocated outside, and so were its views.
        foreign = {name_of(x) for x in tree_iter((args, kwargs or {})) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, Tensor) and name_of(x) not in foreign | self._live:
                storage, name = x.untyped_storage(), name_of(x)
                self.shapes.append(tuple(x.shape))
                self._live.add(name)
                self.live_bytes += storage.nbytes()
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)
                # Torch keeps this object until the memory is freed.
                weakref.finalize(storage, self._free, name, storage.nbytes())
        return result

    def _free(self, name: int, size: int) -> None:
        self._live.remove(name)
        self.live_bytes -= size


def name_of(x: Tensor) -> int:
    """Return what tells a living storage from every other."""
    return x.untyped_storage()._cdata
