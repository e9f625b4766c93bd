"""The one selection rule: higher score first, then lower index.

Used by the indexer and the router, in training, prefill and decode alike. The indexer's ReLU makes
exact zeros, so ties are real; `torch.topk` breaks them by the row's length, which makes cached
decoding differ from a full forward and destabilises RL (GLM-5 report, section on deterministic
top-k). The fast path needs only the value of the k-th largest score, which is unique, and fills the
remaining places from the left. A score of -inf is invisible and never chosen.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def reference(scores: Tensor, k: int) -> Tensor:
    """Choose by a stable descending sort; see `selection_mask` for shapes."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return mask & (scores > -torch.inf)


def selection_mask(scores: Tensor, k: int) -> Tensor:
    """Mark the `k` chosen entries of the last axis; fewer where fewer are visible.

    `scores` is (..., S) of any floating dtype without NaN; the result is bool of the same shape.
    """
    size = scores.shape[-1]
    visible = scores > -torch.inf
    if k >= size:
        return visible
    threshold = torch.topk(scores, k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above = scores > threshold
    tied = scores == threshold
    room = k - above.sum(-1, keepdim=True, dtype=torch.int32)
    # Only where looking at values costs no device synchronisation: most rows have no tie to break.
    if scores.is_cpu and bool((tied.sum(-1, keepdim=True, dtype=torch.int32) == room).all()):
        return (above | tied) & visible
    return (above | (tied & (tied.cumsum(-1) <= room))) & visible


def mask_to_indices(mask: Tensor, k: int) -> Tensor:
    """Return the marked positions of the last axis in ascending order, padded with -1 to `k`.

    `mask` is (..., S) with at most `k` marks a row; the result is int64 of (..., k).
    """
    size = mask.shape[-1]
    positions = torch.arange(size, device=mask.device).expand_as(mask)
    ranked = torch.where(mask, positions, size).sort(dim=-1).values[..., :k]
    ranked = F.pad(ranked, (0, k - ranked.shape[-1]), value=size)
    return ranked.masked_fill(ranked == size, -1)


def select_topk(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the chosen entries in ascending order, padded with -1 to `k`."""
    if k < scores.shape[-1] and scores.is_cpu:
        values, indices = torch.topk(scores, k + 1, dim=-1)
        # A strict step after place k leaves one choice only, and no invisible entry in it.
        if bool((values[..., k - 1] > values[..., k]).all()):
            return indices[..., :k].sort(dim=-1).values
    return mask_to_indices(selection_mask(scores, k), k)
