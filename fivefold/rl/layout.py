"""Rows of samples as tensors, and values of places back to their samples.

A sample of n tokens takes n - 1 places: place t is the input ids[t], and every stream there belongs
to the label ids[t + 1]. A prompt that several samples of a row begin with stands there once, as a
document that each of them sees beside its own; its last token stays with each response, for it
predicts the first one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fivefold.models.surroundings import NO_PREFIX
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.rl.sample import Sample, SampleError
from fivefold.rl.streams import Streams


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


class Stem(NamedTuple):
    """Samples that share a prompt in one row; a sample alone shares none."""

    prefix: int
    """Places that they share."""
    members: list[int]

    def places(self, samples: Sequence[Sample]) -> int:
        """Return the places that it takes."""
        own = sum(count_places(samples[member]) - self.prefix for member in self.members)
        return self.prefix + own


def count_places(sample: Sample) -> int:
    """Return the places of a sample: its tokens but the last."""
    return len(sample.ids) - 1


def count_width(samples: Sequence[Sample], rows: list[list[Stem]]) -> int:
    """Return the places of the fullest row."""
    return max(sum(stem.places(samples) for stem in row) for row in rows)


class Layout:
    """Where each sample of some rows stands."""

    def __init__(
        self,
        samples: Sequence[Sample],
        rows: list[list[Stem]],
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Place the rows' stems one after the other, a shared prompt before its samples."""
        width = count_width(samples, rows)
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
            count_places(sample) - skip
            for sample, skip in zip(self.chosen, self.skipped, strict=True)
        ]
        self.mask_N = self.spread([sample.loss_mask for sample in self.chosen], False).bool()

    def _place_row(self, end: int, row: list[Stem]) -> None:
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
                length = count_places(self.samples[member]) - stem.prefix
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
            positions_BT=self.inputs(lambda sample: np.arange(count_places(sample))),
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
