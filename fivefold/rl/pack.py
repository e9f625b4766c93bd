"""Packing samples into rows of documents: which samples stand in which row.

Samples are never cut, and take no place where no token of them trains; rows are filled best fit,
the rest is padding (`layout`).

Samples of one group begin with the same prompt, whose places train nothing. In a row that holds
several of them it can stand once: with a prompt as long as its eight responses together, half of
the places are left.

Surprise: rows are as narrow as the samples allow, for attention pays for the width: mostly as wide
as the longest sample, and wider where that leaves many more places. No loss and no gradient depends
on it, for denominators are counted before packing (`reduction`). What routers are counted by does:
the places of a shared prompt count once a row, so that wider rows count them fewer times, and the
balance of the experts, which follows these counts, sees the prompts with less weight.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fivefold.data.packing import best_fit_rows
from fivefold.models.surroundings import WHOLE_MASK_TOKENS
from fivefold.rl.layout import Layout, PackedSamples, Stem, count_places, count_width
from fivefold.rl.sample import Sample, SampleError

_MORE_PLACES = 0.1
"""Share of places that narrower rows may cost: less than their attention saves in
`benchmarks/rl_step.py`, whose step takes a fifth less time on rows of 47 places than of 235."""


def pack_samples(
    samples: Sequence[Sample],
    row_tokens: int,
    microbatch_rows: int,
    *,
    shares_prompts: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[PackedSamples]:
    """Pack samples into microbatches of at most `microbatch_rows` x `row_tokens` places.

    No row is wider than `row_tokens`; `dtype` is that of the streams. With `shares_prompts` the
    samples of a group in one row share the places that they have in common before the first that
    trains; such rows are no wider than a mask may be (`WHOLE_MASK_TOKENS`).

    Raises:
        SampleError: a sample does not fit a row, or has no advantages.
    """
    for sample in samples:
        if len(sample.ids) - 1 > row_tokens:
            raise SampleError(
                expected=f"samples of at most {row_tokens + 1} tokens",
                found=f"one of {len(sample.ids)} in group `{sample.group}`",
                fix="Raise the row's length, or lower the response's limit",
            )
    trained = [member for member, sample in enumerate(samples) if sample.loss_tokens]
    if not trained:
        return []
    longest_first = sorted(trained, key=lambda member: -count_places(samples[member]))
    widest = count_places(samples[longest_first[0]])
    families = [Stem(0, [member]) for member in longest_first]
    if shares_prompts and widest <= WHOLE_MASK_TOKENS:
        families = _find_families(samples, longest_first)
        row_tokens_tried = min(row_tokens, WHOLE_MASK_TOKENS)
    else:
        row_tokens_tried = row_tokens
    rows = _fill_rows(samples, families, row_tokens_tried)
    at_a_time = microbatch_rows * row_tokens // count_width(samples, rows)
    return [
        Layout(samples, rows[begin : begin + at_a_time], device, dtype).pack()
        for begin in range(0, len(rows), at_a_time)
    ]


def _find_families(samples: Sequence[Sample], members: list[int]) -> list[Stem]:
    """Return the members by group, in their order, with all that a group could share."""
    by_group: dict[str, list[int]] = {}
    for member in members:
        by_group.setdefault(samples[member].group, []).append(member)
    return [Stem(_common_places(samples, group), group) for group in by_group.values()]


def _common_places(samples: Sequence[Sample], members: list[int]) -> int:
    """Return how many first places the members have in common, up to the first that trains."""
    first = samples[members[0]].ids
    common = len(first)
    for member in members:
        ids = samples[member].ids[:common]
        differs = np.flatnonzero(ids != first[: len(ids)])
        common = int(differs[0]) if len(differs) else len(ids)
        common = min(common, int(np.flatnonzero(samples[member].loss_mask)[0]) - 1)
    return max(common, 0) if len(members) > 1 else 0


def _fill_rows(
    samples: Sequence[Sample], families: list[Stem], row_tokens: int
) -> list[list[Stem]]:
    """Return the stems of each row; families are given with their longest sample first.

    Tries rows for one, two, four ... samples as long as the longest, and takes the narrowest that
    have hardly more places than the best.
    """
    prefix, members = families[0]
    own = count_places(samples[members[0]]) - prefix
    widths = [prefix + own]
    while widths[-1] < row_tokens:
        widths.append(min(2 * widths[-1] - prefix, row_tokens))
    tried: list[tuple[int, list[list[Stem]]]] = []
    for width in widths:
        stems = [stem for family in families for stem in _cut_family(samples, family, width)]
        stems.sort(key=lambda stem: -stem.places(samples))
        row_of = best_fit_rows([stem.places(samples) for stem in stems], width)
        rows: list[list[Stem]] = [[] for _ in range(max(row_of) + 1)]
        for stem, row in zip(stems, row_of, strict=True):
            rows[row].append(stem)
        tried.append((len(rows) * count_width(samples, rows), rows))
    least = min(places for places, _ in tried)
    return next(rows for places, rows in tried if places <= least * (1 + _MORE_PLACES))


def _cut_family(samples: Sequence[Sample], family: Stem, width: int) -> list[Stem]:
    """Cut a family into stems of at most `width` places, best fit."""
    prefix, members = family
    lengths = [count_places(samples[member]) - prefix for member in members]
    row_of = best_fit_rows(lengths, width - prefix)
    parts: list[list[int]] = [[] for _ in range(max(row_of) + 1)]
    for member, row in zip(members, row_of, strict=True):
        parts[row].append(member)
    return [Stem(prefix if len(part) > 1 else 0, part) for part in parts]
