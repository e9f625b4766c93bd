"""Packing samples into rows of documents, and values of places back to their samples.

A sample of n tokens takes n - 1 places: place t is the input ids[t], and every stream there belongs
to the label ids[t + 1]. Samples are never cut, and take no place where no token of them trains;
rows are filled best fit, the rest is padding.

Samples of one group begin with the same prompt, whose places train nothing. In a row that holds
several of them it can stand once, as a document that each of them sees beside its own: with a
prompt as long as its eight responses together, half of the places are left. The last prompt token
stays with each response, for it predicts the first one.

Surprise: rows are as narrow as the samples allow, for attention pays for the width: mostly as wide
as the longest sample, and wider where that leaves many more places. No number depends on it, for
denominators are counted before packing (`reduction`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fivefold.data.packing import best_fit_rows
from fivefold.models.surroundings import NO_PREFIX, WHOLE_MASK_TOKENS
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.rl.sample import Sample, SampleError
from fivefold.rl.streams import Streams

_MORE_PLACES = 0.1
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
    prefixes_BT: Tensor | None
    """Document of the prompt that a place sees beside its own, else `NO_PREFIX`; None: no place has
    one."""
    labels_BT: Tensor
    """Next tokens, int64; `IGNORED` where nothing trains."""
    streams: Streams
    """Of the N = B x T places, row by row."""
    members: tuple[int, ...]
    """Which of the given samples these are: sample s of the streams is `members[s]`."""
    begins: tuple[int, ...]
    """First of the N places of each sample, after a shared prompt."""
    lengths: tuple[int, ...]
    """Places of each sample, without those of a shared prompt."""
    skipped: tuple[int, ...]
    """Places of the shared prompt of each sample; 0 where it stands whole."""
    prompts: tuple["SharedPrompt", ...]
    """Prompts that stand once for several samples."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First place and number of places of each document: shared prompts, then samples."""
        prompts = [(prompt.begin, prompt.length) for prompt in self.prompts]
        return [*prompts, *zip(self.begins, self.lengths, strict=True)]

    @property
    def cu_seqlens(self) -> Tensor:
        """Boundaries of samples and padding within the N places, ascending int32."""
        rows, width = self.ids_BT.shape
        edges = {row * width for row in range(rows + 1)}
        for begin, length in self.spans:
            edges |= {begin, begin + length}
        return torch.tensor(sorted(edges), dtype=torch.int32)

    def with_old(self, logprobs_N: Tensor) -> "PackedSamples":
        """Return the same with the old policy's log-probabilities recorded."""
        recorded_N = logprobs_N.detach().where(self.streams.mask_N, 0.0)
        return dataclasses.replace(
            self, streams=dataclasses.replace(self.streams, old_logprobs_N=recorded_N)
        )

    def unpack(self, values_N: Tensor) -> dict[int, np.ndarray]:
        """Return each member's values, one a token of the sample; the first token has 0.

        So have the labels of a shared prompt.
        """
        flat = values_N.detach().flatten().cpu().numpy()
        places = zip(self.members, self.begins, self.lengths, self.skipped, strict=True)
        return {
            member: np.concatenate([np.zeros(1 + skip, flat.dtype), flat[begin : begin + length]])
            for member, begin, length, skip in places
        }


class SharedPrompt(NamedTuple):
    """A run of places that several samples of a row see."""

    begin: int
    """First of the N places."""
    length: int
    """Places."""
    member: int
    """Any of the samples that begin with it."""


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
    longest_first = sorted(trained, key=lambda member: -_places(samples[member]))
    widest = _places(samples[longest_first[0]])
    families = [_Stem(0, [member]) for member in longest_first]
    if shares_prompts and widest <= WHOLE_MASK_TOKENS:
        families = _find_families(samples, longest_first)
        row_tokens_tried = min(row_tokens, WHOLE_MASK_TOKENS)
    else:
        row_tokens_tried = row_tokens
    rows = _fill_rows(samples, families, row_tokens_tried)
    at_a_time = microbatch_rows * row_tokens // _width(samples, rows)
    return [
        _Layout(samples, rows[begin : begin + at_a_time], device, dtype).pack()
        for begin in range(0, len(rows), at_a_time)
    ]


class _Stem(NamedTuple):
    """Samples that share a prompt in one row; a sample alone shares none."""

    prefix: int
    """Places that they share."""
    members: list[int]

    def places(self, samples: Sequence[Sample]) -> int:
        """Return the places that it takes."""
        own = sum(_places(samples[member]) - self.prefix for member in self.members)
        return self.prefix + own


def _places(sample: Sample) -> int:
    return len(sample.ids) - 1


def _find_families(samples: Sequence[Sample], members: list[int]) -> list[_Stem]:
    """Return the members by group, in their order, with all that a group could share."""
    by_group: dict[str, list[int]] = {}
    for member in members:
        by_group.setdefault(samples[member].group, []).append(member)
    return [_Stem(_common_places(samples, group), group) for group in by_group.values()]


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
    samples: Sequence[Sample], families: list[_Stem], row_tokens: int
) -> list[list[_Stem]]:
    """Return the stems of each row; families are given with their longest sample first.

    Tries rows for one, two, four ... samples as long as the longest, and takes the narrowest that
    have hardly more places than the best.
    """
    prefix, members = families[0]
    own = _places(samples[members[0]]) - prefix
    widths = [prefix + own]
    while widths[-1] < row_tokens:
        widths.append(min(2 * widths[-1] - prefix, row_tokens))
    tried: list[tuple[int, list[list[_Stem]]]] = []
    for width in widths:
        stems = [stem for family in families for stem in _cut_family(samples, family, width)]
        stems.sort(key=lambda stem: -stem.places(samples))
        row_of = best_fit_rows([stem.places(samples) for stem in stems], width)
        rows: list[list[_Stem]] = [[] for _ in range(max(row_of) + 1)]
        for stem, row in zip(stems, row_of, strict=True):
            rows[row].append(stem)
        tried.append((len(rows) * _width(samples, rows), rows))
    least = min(places for places, _ in tried)
    return next(rows for places, rows in tried if places <= least * (1 + _MORE_PLACES))


def _cut_family(samples: Sequence[Sample], family: _Stem, width: int) -> list[_Stem]:
    """Cut a family into stems of at most `width` places, best fit."""
    prefix, members = family
    lengths = [_places(samples[member]) - prefix for member in members]
    row_of = best_fit_rows(lengths, width - prefix)
    parts: list[list[int]] = [[] for _ in range(max(row_of) + 1)]
    for member, row in zip(members, row_of, strict=True):
        parts[row].append(member)
    return [_Stem(prefix if len(part) > 1 else 0, part) for part in parts]


def _width(samples: Sequence[Sample], rows: list[list[_Stem]]) -> int:
    """Return the places of the fullest row."""
    return max(sum(stem.places(samples) for stem in row) for row in rows)


class _Layout:
    """Where each sample of some rows stands."""

    def __init__(
        self,
        samples: Sequence[Sample],
        rows: list[list[_Stem]],
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Place the rows' stems one after the other, a shared prompt before its samples."""
        width = _width(samples, rows)
        self.shape = (len(rows), width)
        self.device, self.dtype = device, dtype
        self.samples = samples
        self.members: list[int] = []
        self.begins: list[int] = []
        self.skipped: list[int] = []
        self.prompts: list[SharedPrompt] = []
        places = len(rows) * width
        self.documents_N, self.prefixes_N = np.full(places, -1), np.full(places, NO_PREFIX)
        for number, row in enumerate(rows):
            self._place_row(number * width, row)
        self.chosen = [samples[member] for member in self.members]
        self.lengths = [
            _places(sample) - skip for sample, skip in zip(self.chosen, self.skipped, strict=True)
        ]
        self.mask_N = self.spread([sample.loss_mask for sample in self.chosen], False).bool()

    def _place_row(self, end: int, row: list[_Stem]) -> None:
        """Place the stems of one row from place `end` on."""
        document = 0
        for stem in row:
            prompt = NO_PREFIX
            if stem.prefix:
                prompt = document
                self.prompts.append(SharedPrompt(end, stem.prefix, stem.members[0]))
                self.documents_N[end : end + stem.prefix] = document
                end, document = end + stem.prefix, document + 1
            for member in stem.members:
                length = _places(self.samples[member]) - stem.prefix
                self.members.append(member)
                self.begins.append(end)
                self.skipped.append(stem.prefix)
                self.documents_N[end : end + length] = document
                self.prefixes_N[end : end + length] = prompt
                end, document = end + length, document + 1

    def spread(self, values: Sequence[np.ndarray], empty: int | float) -> Tensor:
        """Lay the last values of each sample over its places."""
        flat = np.full(self.shape[0] * self.shape[1], empty)
        for begin, length, value in zip(self.begins, self.lengths, values, strict=True):
            flat[begin : begin + length] = value[len(value) - length :]
        return torch.from_numpy(flat).to(self.device)

    def inputs(self, pick: Callable[[Sample], np.ndarray]) -> Tensor:
        """Lay one value an input [n - 1] of a sample over all places, shared prompts included."""
        values_N = self.spread([pick(sample) for sample in self.chosen], 0)
        for begin, length, member in self.prompts:
            shared = pick(self.samples[member])[:length]
            values_N[begin : begin + length] = torch.from_numpy(shared).to(self.device)
        return values_N.view(self.shape)

    def numbered(self, numbers: Sequence[int], empty: int) -> Tensor:
        """Lay one number a sample over its places."""
        pairs = zip(numbers, self.lengths, strict=True)
        return self.spread([np.full(length, number) for number, length in pairs], empty)

    def stream(self, pick: Callable[[Sample], np.ndarray]) -> Tensor:
        """Lay a stream of the samples over the places of their labels, 0 where masked."""
        spread_N = self.spread([pick(sample) for sample in self.chosen], 0.0)
        return spread_N.to(self.dtype).where(self.mask_N, 0.0)

    def pack(self) -> PackedSamples:
        """Build the tensors."""
        labels_N = self.spread([sample.ids for sample in self.chosen], 0)
        return PackedSamples(
            ids_BT=self.inputs(lambda sample: sample.ids[:-1]),
            positions_BT=self.inputs(lambda sample: np.arange(_places(sample))),
            documents_BT=self._rows(self.documents_N) if self.documents_N.max() else None,
            prefixes_BT=self._rows(self.prefixes_N) if self.prompts else None,
            labels_BT=labels_N.where(self.mask_N, IGNORED).view(self.shape),
            streams=self.streams(),
            members=tuple(self.members),
            begins=tuple(self.begins),
            lengths=tuple(self.lengths),
            skipped=tuple(self.skipped),
            prompts=tuple(self.prompts),
        )

    def _rows(self, values_N: np.ndarray) -> Tensor:
        return torch.from_numpy(values_N).to(self.device).view(self.shape)

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
