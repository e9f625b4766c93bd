"""Packing samples into rows of documents, and values of places back to their samples.

A sample of n tokens takes n - 1 places: place t is the input ids[t], and every stream there belongs
to the label ids[t + 1]. Samples are never cut, and take no place where no token of them trains;
rows are filled best fit, the rest is padding.

Surprise: rows are as narrow as the samples allow, for attention pays for the width: mostly as wide
as the longest sample, and wider where that leaves much padding. No number depends on it, for
denominators are counted before packing (`reduction`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fivefold.data.packing import best_fit_rows
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.rl.sample import Sample, SampleError
from fivefold.rl.streams import Streams

_MORE_PADDING = 0.1
"""Share of places that narrower rows may cost: less than their attention saves in
`benchmarks/rl_step.py`, whose step takes a fifth less time on rows of 47 places than of 235."""


@dataclass(frozen=True)
class PackedSamples:
    """Some whole samples as B rows of T places."""

    ids_BT: Tensor
    """Inputs, int64; 0 where there is none."""
    positions_BT: Tensor
    """Place in the sample, int64."""
    documents_BT: Tensor | None
    """Sample within its row, -1 for padding; None where every row holds one sample."""
    labels_BT: Tensor
    """Next tokens, int64; `IGNORED` where nothing trains."""
    streams: Streams
    """Of the N = B x T places, row by row."""
    members: tuple[int, ...]
    """Which of the given samples these are: sample s of the streams is `members[s]`."""
    begins: tuple[int, ...]
    """First of the N places of each sample."""
    lengths: tuple[int, ...]
    """Places of each sample."""

    @property
    def cu_seqlens(self) -> Tensor:
        """Boundaries of samples and padding within the N places, ascending int32."""
        rows, width = self.ids_BT.shape
        edges = {row * width for row in range(rows + 1)}
        for begin, length in zip(self.begins, self.lengths, strict=True):
            edges |= {begin, begin + length}
        return torch.tensor(sorted(edges), dtype=torch.int32)

    def with_old(self, logprobs_N: Tensor) -> "PackedSamples":
        """Return the same with the old policy's log-probabilities recorded."""
        recorded_N = logprobs_N.detach().where(self.streams.mask_N, 0.0)
        return dataclasses.replace(
            self, streams=dataclasses.replace(self.streams, old_logprobs_N=recorded_N)
        )

    def unpack(self, values_N: Tensor) -> dict[int, np.ndarray]:
        """Return each member's values, one a token of the sample; the first token has 0."""
        flat = values_N.detach().flatten().cpu().numpy()
        return {
            member: np.concatenate([np.zeros(1, flat.dtype), flat[begin : begin + length]])
            for member, begin, length in zip(self.members, self.begins, self.lengths, strict=True)
        }


def pack_samples(
    samples: Sequence[Sample],
    row_tokens: int,
    microbatch_rows: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[PackedSamples]:
    """Pack samples into microbatches of at most `microbatch_rows` x `row_tokens` places.

    No row is wider than `row_tokens`; `dtype` is that of the streams.

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
    longest_first = sorted(trained, key=lambda member: -len(samples[member].ids))
    rows = _fill_rows(samples, longest_first, row_tokens)
    at_a_time = microbatch_rows * row_tokens // _width(samples, rows)
    return [
        _Layout(samples, rows[begin : begin + at_a_time], device, dtype).pack()
        for begin in range(0, len(rows), at_a_time)
    ]


def _fill_rows(samples: Sequence[Sample], members: list[int], row_tokens: int) -> list[list[int]]:
    """Return the members of each row; they are given longest first.

    Tries one, two, four ... times the longest as the width, and takes the narrowest that is hardly
    padded more than the best.
    """
    lengths = [len(samples[member].ids) - 1 for member in members]
    widths = [lengths[0]]
    while widths[-1] < row_tokens:
        widths.append(min(2 * widths[-1], row_tokens))
    tried: list[tuple[int, list[list[int]]]] = []
    for width in widths:
        row_of = best_fit_rows(lengths, width)
        rows: list[list[int]] = [[] for _ in range(max(row_of) + 1)]
        for member, row in zip(members, row_of, strict=True):
            rows[row].append(member)
        tried.append((len(rows) * _width(samples, rows), rows))
    least = min(places for places, _ in tried)
    return next(rows for places, rows in tried if places <= least * (1 + _MORE_PADDING))


def _width(samples: Sequence[Sample], rows: list[list[int]]) -> int:
    """Return the places of the fullest row."""
    return max(sum(len(samples[member].ids) - 1 for member in row) for row in rows)


class _Layout:
    """Where each sample of some rows stands."""

    def __init__(
        self,
        samples: Sequence[Sample],
        rows: list[list[int]],
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Place the rows' members one after the other."""
        self.members = [member for row in rows for member in row]
        self.chosen = [samples[member] for member in self.members]
        self.lengths = [len(sample.ids) - 1 for sample in self.chosen]
        self.documents = [place for row in rows for place in range(len(row))]
        width = _width(samples, rows)
        self.shape = (len(rows), width)
        self.begins = []
        for number, row in enumerate(rows):
            end = number * width
            for member in row:
                self.begins.append(end)
                end += len(samples[member].ids) - 1
        self.device, self.dtype = device, dtype
        self.mask_N = self.spread([sample.loss_mask[1:] for sample in self.chosen], False).bool()

    def spread(self, values: Sequence[np.ndarray], empty: int | float) -> Tensor:
        """Lay one array a sample over the places."""
        flat = np.full(self.shape[0] * self.shape[1], empty)
        for begin, length, value in zip(self.begins, self.lengths, values, strict=True):
            flat[begin : begin + length] = value
        return torch.from_numpy(flat).to(self.device)

    def numbered(self, numbers: Sequence[int], empty: int) -> Tensor:
        """Lay one number a sample over its places."""
        pairs = zip(numbers, self.lengths, strict=True)
        return self.spread([np.full(length, number) for number, length in pairs], empty)

    def stream(self, pick: Callable[[Sample], np.ndarray]) -> Tensor:
        """Lay a stream of the samples over the places of their labels, 0 where masked."""
        spread_N = self.spread([pick(sample)[1:] for sample in self.chosen], 0.0)
        return spread_N.to(self.dtype).where(self.mask_N, 0.0)

    def pack(self) -> PackedSamples:
        """Build the tensors."""
        labels_N = self.spread([sample.ids[1:] for sample in self.chosen], 0)
        documents_N = self.numbered(self.documents, -1)
        return PackedSamples(
            ids_BT=self.spread([s.ids[:-1] for s in self.chosen], 0).view(self.shape),
            positions_BT=self.spread([np.arange(n) for n in self.lengths], 0).view(self.shape),
            documents_BT=documents_N.view(self.shape) if max(self.documents) else None,
            labels_BT=labels_N.where(self.mask_N, IGNORED).view(self.shape),
            streams=self.streams(),
            members=tuple(self.members),
            begins=tuple(self.begins),
            lengths=tuple(self.lengths),
        )

    def streams(self) -> Streams:
        """Build the streams; a teacher's only where every sample has one."""
        has_teacher = all(sample.teacher_logprobs is not None for sample in self.chosen)
        sequence_N = self.numbered(range(len(self.members)), 0)
        return Streams(
            mask_N=self.mask_N,
            sequence_N=sequence_N.where(self.mask_N, 0),
            advantages_N=self.stream(_advantages),
            weights_N=self.stream(_weights),
            rollout_logprobs_N=self.stream(lambda sample: sample.rollout_logprobs),
            tokens_S=torch.tensor([s.loss_tokens for s in self.chosen], device=self.device),
            copies_S=torch.tensor([s.copies for s in self.chosen], device=self.device),
            teacher_logprobs_N=self.stream(_teacher_logprobs) if has_teacher else None,
        )


def _advantages(sample: Sample) -> np.ndarray:
    if sample.advantages is None:
        raise SampleError(
            expected="advantages in every sample that is packed for training",
            found=f"none in group `{sample.group}`",
            fix="Call `assign_advantages` first",
        )
    return sample.advantages


def _weights(sample: Sample) -> np.ndarray:
    return np.ones(len(sample.ids)) if sample.weights is None else sample.weights


def _teacher_logprobs(sample: Sample) -> np.ndarray:
    assert sample.teacher_logprobs is not None
    return sample.teacher_logprobs
