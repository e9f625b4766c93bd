"""A recorder of the largest tensor that a piece of code makes."""

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
            # The storage counts, not the view: an expanded tensor takes no memory.
            if isinstance(x, Tensor):
                numbers = x.untyped_storage().nbytes() // x.element_size()
                if numbers > self.numbers:
                    self.numbers, self.shape = numbers, tuple(x.shape)
        return result
