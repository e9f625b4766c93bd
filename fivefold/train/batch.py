"""Rows of the data room as tensors of the model, with labels for every prediction depth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.ops.chunked_cross_entropy import IGNORED


@dataclass(frozen=True)
class Batch:
    """Some rows of T inputs; depth 0 is next-token prediction, depth k that of the MTP layer."""

    ids_BT: Tensor
    """Inputs, int64 (B, T)."""
    positions_BT: Tensor
    """Place of each input in its document, int64 (B, T)."""
    documents_BT: Tensor | None
    """Document of each input within its row; None where every row is one document."""
    ahead_BT: list[Tensor]
    """For depth k = 1, 2, ...: the token k places ahead of each position, int64 (B, T)."""
    labels_BT: list[Tensor]
    """For depth k = 0, 1, ...: the token k + 1 places ahead, or IGNORED beyond the document and
    where that token is not learned."""
    weights_BT: list[Tensor] | None
    """Factor of the loss of each label, fp32 (B, T) a depth; None: all 1."""

    def of_tokens(self, take: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch of some of its tokens, `take` of (B, T); documents stay whole."""
        weights = None if self.weights_BT is None else [take(x) for x in self.weights_BT]
        return replace(
            self,
            ids_BT=take(self.ids_BT),
            ahead_BT=[take(x) for x in self.ahead_BT],
            labels_BT=[take(x) for x in self.labels_BT],
            weights_BT=weights,
        )


def label_counts(rows: Rows, depths: int) -> list[int]:
    """Return the number of labels of depths 0 to `depths`: the losses' denominators."""
    return [int(_has_label(rows, depth + 1).sum()) for depth in range(depths + 1)]


def make_batch(
    rows: Rows, depths: int, device: str | torch.device, *, keeps_padding: bool = False
) -> Batch:
    """Build the tensors of `rows` for next-token prediction and `depths` MTP depths.

    `keeps_padding` names the documents where rows have padding too, for losses on every query.
    """
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    context = ids.shape[1] - 1
    labels, ahead = [], []
    for depth in range(depths + 1):
        shifted = _shift(ids, depth + 1, context)
        valid = torch.from_numpy(_has_label(rows, depth + 1))
        labels.append(torch.where(valid, shifted, IGNORED).to(device))
        if depth:
            ahead.append(_shift(ids, depth, context).to(device))
    inputs_document = rows.document[:, :-1]
    # Padding stands at the end of a row, where causality hides it from everything before.
    single = bool((inputs_document <= inputs_document[:, :1]).all())
    single = single and not (keeps_padding and bool((inputs_document < 0).any()))
    documents = None if single else torch.from_numpy(inputs_document).to(device)
    positions = torch.from_numpy(rows.positions[:, :-1].astype(np.int64)).to(device)
    weights = None
    if rows.weight is not None:
        weight = torch.from_numpy(rows.weight)
        weights = [_shift(weight, depth + 1, context).to(device) for depth in range(depths + 1)]
    return Batch(ids[:, :-1].to(device), positions, documents, ahead, labels, weights)


def microbatches(rows: Rows, size: int) -> Iterator[Rows]:
    """Cut rows into parts of `size`."""
    for begin in range(0, len(rows.ids), size):
        yield rows.part(slice(begin, begin + size))


def _shift(ids: Tensor, places: int, context: int) -> Tensor:
    """Return ids[:, i + places] for i < context; beyond the row, its last id (never a label)."""
    index = (torch.arange(context) + places).clamp_max(ids.shape[1] - 1)
    return ids[:, index]


def _has_label(rows: Rows, places: int) -> np.ndarray:
    """Is the token `places` ahead in the same document, and learned? bool [rows, context]."""
    result = _continues(rows.document, places)
    if rows.weight is not None:
        context = result.shape[1]
        result[:, : context + 1 - places] &= rows.weight[:, places:] > 0
    return result


def _continues(document: np.ndarray, places: int) -> np.ndarray:
    """Is the token `places` ahead in the same document? bool [rows, context]."""
    context = document.shape[1] - 1
    result = np.zeros((len(document), context), dtype=bool)
    here, there = document[:, : context + 1 - places], document[:, places:]
    result[:, : context + 1 - places] = (here == there) & (here >= 0)
    return result
