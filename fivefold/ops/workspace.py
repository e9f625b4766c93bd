"""How large a block of work is, and memory that one block after another uses again.

A CPU wants a block's tensors in its cache. And an allocator returns large tensors to the system and
gets them back empty: the page faults of a fresh 8 MiB cost more than the matrix product that fills
them. A workspace keeps one tensor and lends views of it.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_CACHE_NUMBERS = 2**21
"""Numbers of one block's largest tensor on a CPU: in fp32 8 MiB, which stay in a shared cache."""
_DEVICE_NUMBERS = 2**27
"""The same elsewhere, where few large kernels are better and memory is the bound: 512 MiB."""


def block_numbers(device: torch.device) -> int:
    """Return how many numbers the largest tensor of one block of work may have."""
    return _CACHE_NUMBERS if device.type == "cpu" else _DEVICE_NUMBERS


def slices(begin: int, end: int, size: int) -> Iterator[slice]:
    """Cut `begin` to `end` into slices of `size`, the last one shorter."""
    for start in range(begin, end, size):
        yield slice(start, min(start + size, end))


class Workspace:
    """Lends one piece of memory; what was lent before is overwritten."""

    def __init__(self, like: Tensor, dtype: torch.dtype | None = None) -> None:
        """Lend tensors on the device of `like`, of its dtype unless another is given."""
        self._memory = torch.empty(0, dtype=dtype or like.dtype, device=like.device)

    def lend(self, *shape: int) -> Tensor:
        """Return a contiguous tensor of this shape, of unknown content."""
        numbers = math.prod(shape)
        if len(self._memory) < numbers:
            self._memory = self._memory.new_empty(numbers)
        return self._memory[:numbers].view(shape)
