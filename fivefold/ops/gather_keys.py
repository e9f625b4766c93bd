"""Read the rows of selected keys, and add gradients back to them.

The rows of all batch rows stand in one table, so that one index finds any of them; padding of the
selection reads the first row of its batch row and is named, for the caller to mask. Pieces of
queries are cut so that the gathered rows stay in a cache. Shapes: P queries of all batch rows, X
numbers of a row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fivefold.ops.workspace import Workspace, block_numbers, slices


class KeyGather:
    """The table of keys, and which of them each query has selected."""

    def __init__(self, keys_BSX: Tensor, selected_BTK: Tensor) -> None:
        """Prepare to gather `selected_BTK`, places of keys or -1, from `keys_BSX`."""
        rows, keys, _ = keys_BSX.shape
        self.table_SX = keys_BSX.flatten(0, 1)
        begin = keys * torch.arange(rows, device=selected_BTK.device, dtype=selected_BTK.dtype)
        self.place_PK = (selected_BTK.clamp_min(0) + begin[:, None, None]).flatten(0, 1)
        self.empty_PK = (selected_BTK < 0).flatten(0, 1)
        self.has_empty = self.empty_PK.any(-1).tolist()
        self._read, self._made = Workspace(keys_BSX), Workspace(keys_BSX)
        self._wide = Workspace(keys_BSX, torch.promote_types(keys_BSX.dtype, torch.float32))

    def pieces(self, chunk: slice) -> Iterator[slice]:
        """Cut a chunk of the P queries into pieces."""
        numbers = self.place_PK.shape[1] * self.table_SX.shape[1]
        # The rows of a piece and their gradients are in use together.
        size = max(block_numbers(self.table_SX.device) // (2 * numbers), 1)
        # A batched product deals whole queries to threads.
        threads = torch.get_num_threads()
        return slices(chunk.start, chunk.stop, size - size % threads if size > threads else size)

    def rows(self, piece: slice) -> tuple[Tensor, Tensor | None]:
        """Return the gathered rows (P, K, X) and where there is none, bool (P, 1, K) or None.

        The next call overwrites the rows.
        """
        place_PK = self.place_PK[piece]
        rows_PKX = self._read.lend(*place_PK.shape, self.table_SX.shape[1])
        torch.index_select(self.table_SX, 0, place_PK.flatten(), out=rows_PKX.flatten(0, 1))
        return rows_PKX, self.empty_PK[piece, None] if any(self.has_empty[piece]) else None

    def add_product_(
        self, sum_SX: Tensor, piece: slice, left_PKY: Tensor, right_PYX: Tensor
    ) -> None:
        """Add the rows of a product (P, K, X) to where they came from; deterministic on a CPU.

        `sum_SX` has the dtype of the keys, or fp32 for narrower keys.
        """
        rows_PKX = self._made.lend(*left_PKY.shape[:2], right_PYX.shape[2])
        torch.bmm(left_PKY, right_PYX, out=rows_PKX)
        if sum_SX.dtype != rows_PKX.dtype:
            rows_PKX = self._wide.lend(*rows_PKX.shape).copy_(rows_PKX)
        # int64 indices take a path that is two to four times as fast as that of int32 ones.
        place = self.place_PK[piece].flatten().long()
        sum_SX.index_add_(0, place, rows_PKX.flatten(0, 1))
