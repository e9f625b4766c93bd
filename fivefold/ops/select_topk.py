"""The one selection rule: higher score first, then lower index.

Used by the indexer and the router, in training, prefill and decode alike. The indexer's ReLU makes
exact zeros, so ties are real; `torch.topk` breaks them by the row's length, which makes cached
decoding differ from a full forward and destabilises RL (GLM-5 report, section on deterministic
top-k). The fast path needs only values, which are unique: a row whose k-th value stands strictly
above the next has one choice; in the others the places at the k-th value are filled from the left.
A score of -inf is invisible and never chosen.
"""

import numpy as np
import torch
from torch import Tensor

# Up to so many scores, as in decoding, the number of operators counts and not their work.
_FEW = 20_000


def reference(scores: Tensor, k: int) -> Tensor:
    """Choose by a stable descending sort; see `selection_mask` for shapes."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return mask & (scores > -torch.inf)


def largest(scores: Tensor, n: int) -> Tensor:
    """Return the `n` largest values of each row of (X, S), the least of them first.

    On a CPU by NumPy's vectorised quickselect: `benchmarks/selection.py` against `torch.topk`.
    """
    if not scores.is_cpu:
        return torch.topk(scores, n, dim=-1).values.flip(-1)
    first = scores.shape[-1] - n
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    parted = np.partition(wide.numpy(), first, axis=-1)
    return torch.from_numpy(parted[:, first:]).to(scores.dtype)


def selection_mask(scores: Tensor, k: int) -> Tensor:
    """Mark the `k` chosen entries of the last axis; fewer where fewer are visible.

    `scores` is (..., S) of any floating dtype without NaN; the result is bool of the same shape.
    """
    size = scores.shape[-1]
    if k >= size:
        return scores > -torch.inf
    if not scores.is_cpu:
        return _mask_by_count(scores, k)
    rows = scores.reshape(-1, size)
    values = largest(rows, k + 1)
    # The (k + 1)-th value: what stands above it is chosen, unless the k-th is equal.
    left_out = values[:, :1]
    mask = rows > left_out
    is_tied = (values[:, 1:] == left_out).any(-1) & (left_out[:, 0] > -torch.inf)
    if bool(is_tied.any()):
        mask[is_tied] = _mask_by_count(rows[is_tied], k)
    return mask.view(scores.shape)


def _mask_by_count(scores: Tensor, k: int) -> Tensor:
    """Mark what stands above the k-th value, and fill up from the left among its equals."""
    threshold = largest(scores.reshape(-1, scores.shape[-1]), k)[:, 0]
    threshold = threshold.view(*scores.shape[:-1], 1)
    above, tied = scores > threshold, scores == threshold
    room = k - above.sum(-1, keepdim=True, dtype=torch.int32)
    fills = tied & (tied.cumsum(-1, dtype=torch.int32) <= room)
    return (above | fills) & (scores > -torch.inf)


def mask_to_indices(mask: Tensor, k: int) -> Tensor:
    """Return the marked positions of the last axis in ascending order, padded with -1 to `k`.

    `mask` is (..., S) with at most `k` marks a row; the result is int64 of (..., k).
    """
    size = mask.shape[-1]
    if not mask.is_cpu:
        # The last place takes what is not marked, and is cut off.
        indices = torch.full((*mask.shape[:-1], k + 1), -1, device=mask.device)
        place = torch.where(mask, mask.cumsum(-1) - 1, k)
        positions = torch.arange(size, device=mask.device).expand_as(mask)
        return indices.scatter_(-1, place, positions)[..., :k]
    rows = mask.reshape(-1, size)
    row, column = rows.nonzero(as_tuple=True)
    if len(column) == len(rows) * k:
        return column.view(*mask.shape[:-1], k)
    counts = rows.sum(-1)
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    indices = torch.full((len(rows), k), -1)
    indices[row, place] = column
    return indices.view(*mask.shape[:-1], k)


def select_topk(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the chosen entries in ascending order, padded with -1 to `k`.

    `scores` as for `selection_mask`; the result is int64 of (..., k).
    """
    if k < scores.shape[-1] and scores.is_cpu and scores.numel() <= _FEW:
        values, places = torch.topk(scores, k + 1, dim=-1)
        if bool((values[..., k - 1] > values[..., k]).all()):
            return places[..., :k].sort(-1).values
    return mask_to_indices(selection_mask(scores, k), k)
