"""Memory that one block of work after another uses again.

An allocator returns large tensors to the system and gets them back empty: on a CPU the page faults
of a fresh 8 MiB cost more than the matrix product that fills them. A workspace keeps one tensor and
lends views of it.
"""

import math

import torch
from torch import Tensor


class Workspace:
    """Lends one piece of memory; what was lent before is overwritten."""

    def __init__(self, like: Tensor) -> None:
        """Lend tensors of the dtype and device of `like`."""
        self._memory = torch.empty(0, dtype=like.dtype, device=like.device)

    def lend(self, *shape: int) -> Tensor:
        """Return a contiguous tensor of this shape, of unknown content."""
        numbers = math.prod(shape)
        if len(self._memory) < numbers:
            self._memory = self._memory.new_empty(numbers)
        return self._memory[:numbers].view(shape)
