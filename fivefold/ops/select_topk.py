"""The one selection rule: higher score first, then lower index.

Used by the indexer and the router, in training, prefill and decode alike. The indexer's ReLU makes
exact zeros, so ties are real; `torch.topk` breaks them by the row's length, which makes cached
decoding differ from a full forward and destabilises RL (GLM-5 report, section on deterministic
top-k). The fast paths need only values, which are unique: a row whose k-th value stands strictly
above the next has one choice; in the others the places at the k-th value are filled from the left.
A score of -inf is invisible and never chosen.
"""

import torch
from torch import Tensor

_GROUP = 4
"""Entries that `largest` ranks by their maximum: 2 and 8 were slower at 2K to 32K entries."""
_FEW = 2**15
"""Scores of all rows that are ranked at once: fewer calls count for more than fewer entries."""


def reference(scores: Tensor, k: int) -> Tensor:
    """Choose by a stable descending sort; see `selection_mask` for shapes."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return mask & (scores > -torch.inf)


def largest(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the `n` largest values of each row of (X, S) and where they stand, in no order.

    Which of several equal entries stand at the end of the list is undefined, as in `torch.topk`.
    Long rows are cut into groups: the n groups with the largest maxima hold n entries as large as
    any n, so that only they are ranked. Two to four times as fast as `torch.topk` on a CPU.
    """
    size = scores.shape[-1]
    columns = size // _GROUP
    if not scores.is_cpu or columns < 2 * n or scores.numel() <= _FEW:
        values, indices = torch.topk(scores, n, dim=-1, sorted=False)
        return values, indices
    # Group c holds the entries c, c + columns, ...: the maxima of neighbours come in one load.
    grouped = scores[:, : _GROUP * columns].unflatten(1, (_GROUP, columns))
    _, column = largest(grouped.amax(1), n)
    rest = torch.arange(_GROUP * columns, size).expand(len(scores), -1)
    begin = columns * torch.arange(_GROUP)[:, None]
    candidates = grouped.gather(2, column[:, None].expand(-1, _GROUP, -1)).flatten(1)
    values, chosen = torch.topk(
        torch.cat([candidates, scores[:, _GROUP * columns :]], 1), n, dim=-1, sorted=False
    )
    positions = torch.cat([(begin + column[:, None]).flatten(1), rest], 1)
    return values, positions.gather(1, chosen)


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
    values, _ = largest(rows, k + 1)
    # The (k + 1)-th value: what stands above it is chosen, unless the k-th is equal.
    left_out = values.amin(-1, keepdim=True)
    mask = rows > left_out
    is_tied = ((values == left_out).sum(-1) > 1) & (left_out[:, 0] > -torch.inf)
    if bool(is_tied.any()):
        mask[is_tied] = _mask_by_count(rows[is_tied], k)
    return mask.view(scores.shape)


def _mask_by_count(scores: Tensor, k: int) -> Tensor:
    """Mark what stands above the k-th value, and fill up from the left among its equals."""
    threshold = largest(scores.reshape(-1, scores.shape[-1]), k)[0].amin(-1)
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
    counts = rows.sum(-1)
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    indices = torch.full((len(rows), k), -1)
    indices[row, place] = column
    return indices.view(*mask.shape[:-1], k)


def select_topk(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the chosen entries in ascending order, padded with -1 to `k`.

    `scores` as for `selection_mask`; the result is int64 of (..., k).
    """
    size = scores.shape[-1]
    if k >= size or not scores.is_cpu:
        return mask_to_indices(selection_mask(scores, k), k)
    rows = scores.reshape(-1, size)
    chosen, is_tied = _choose_untied(rows, k)
    if bool(is_tied.any()):
        chosen[is_tied] = mask_to_indices(selection_mask(rows[is_tied], k), k)
    return chosen.view(*scores.shape[:-1], k)


def _choose_untied(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return a choice for each row of (X, S), ascending, and where it is not the only one.

    It is not where the k-th value is that of the next: a tie, or an invisible entry.
    """
    if rows.numel() <= _FEW:
        values, indices = torch.topk(rows, k + 1, dim=-1)
        return indices[:, :k].sort(-1).values, values[:, k - 1] == values[:, k]
    values, indices = largest(rows, k + 1)
    least, place = values.min(-1, keepdim=True)
    # The least of k + 1 is left out: it sorts behind all others and is cut off.
    chosen = indices.scatter(-1, place, rows.shape[-1]).sort(-1).values[:, :k]
    return chosen, (values == least).sum(-1) > 1
