"""A policy that is a table of logits, one row a place: every gradient has a closed form."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fivefold.rl.config import ReductionConfig
from fivefold.rl.layout import PackedSamples
from fivefold.rl.pack import pack_samples
from fivefold.rl.reduction import Totals, count_totals, reduce_loss
from fivefold.rl.sample import NOT_SAMPLED, Sample
from fivefold.rl.streams import Streams, TokenLossFunction

WORDS = 5
SEQUENCE_MEAN = ReductionConfig()
TOKEN_MEAN = ReductionConfig(kind="token_mean")
FIXED = ReductionConfig(kind="fixed", fixed_tokens=7)
REDUCTIONS = [SEQUENCE_MEAN, TOKEN_MEAN, FIXED]


def make_sample(
    seed: int = 0, tokens: int = 6, prompt: int = 2, hole: int | None = None, **changes: Any
) -> Sample:
    """Make a random sample whose response is all trained but for the token at `hole`."""
    rng = np.random.default_rng(seed)
    mask = np.arange(tokens) >= prompt
    if hole is not None:
        mask[hole] = False
    fields: dict = {
        "ids": rng.integers(0, WORDS, tokens),
        "loss_mask": mask,
        # What does not train is as hostile as engines are.
        "rollout_logprobs": np.where(mask, -rng.exponential(1.0, tokens), np.nan),
        "versions": np.where(mask, 3, NOT_SAMPLED).astype(np.int32),
        "group": "g",
        "reward": float(rng.integers(0, 2)),
        "advantages": np.where(mask, rng.normal(size=tokens), 0.0),
        "teacher_logprobs": np.where(mask, -rng.exponential(1.0, tokens), -np.inf),
    }
    return Sample(**(fields | changes))


def make_batch(count: int = 7, seed: int = 0) -> list[Sample]:
    """Make samples of many lengths, some with a hole, one that counts three times."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        tokens = int(rng.integers(4, 12))
        samples.append(
            make_sample(
                100 * seed + number,
                tokens,
                prompt=int(rng.integers(1, 3)),
                hole=tokens - 2 if number % 3 == 0 else None,
                copies=3 if number == 1 else 1,
                weights=rng.uniform(0.5, 1.5, tokens),
            )
        )
    return samples


def table_of(samples: list[Sample], seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Make logits for every token of every sample, [n, WORDS] in fp64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(len(s.ids), WORDS, generator=generator, dtype=torch.float64) * scale)
        .detach()
        .requires_grad_()
        for s in samples
    ]


def packed_logprobs(packed: PackedSamples, samples: list[Sample], table: list[Tensor]) -> Tensor:
    """Return the log-probability of each place's label under the table, 0 for padding."""
    flat = torch.zeros(packed.ids_BT.numel(), dtype=torch.float64)
    pieces, places = [], []
    for member, begin, length in zip(packed.members, packed.begins, packed.lengths, strict=True):
        ids = torch.from_numpy(samples[member].ids[1:])
        logprobs = table[member][1:].log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        pieces.append(logprobs)
        places.append(torch.arange(begin, begin + length))
    return flat.index_put((torch.cat(places),), torch.cat(pieces))


def batch_loss(
    samples: list[Sample],
    table: list[Tensor],
    token_loss: TokenLossFunction,
    reduction: ReductionConfig = SEQUENCE_MEAN,
    *,
    row_tokens: int = 16,
    microbatch_rows: int = 100,
    old_table: list[Tensor] | None = None,
    totals: Totals | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return loss and measures of a batch, however it is packed."""
    totals = totals or count_totals(samples)
    loss, measured = torch.zeros((), dtype=torch.float64), dict[str, float]()
    for packed in pack_samples(samples, row_tokens, microbatch_rows, dtype=torch.float64):
        if old_table is not None:
            packed = packed.with_old(packed_logprobs(packed, samples, old_table))
        logprobs = packed_logprobs(packed, samples, table)
        share = reduce_loss(token_loss(logprobs, packed.streams), packed.streams, totals, reduction)
        loss = loss + share.total
        for name, value in share.measured.items():
            measured[name] = measured.get(name, 0.0) + float(value)
    return loss, measured


def gradients(loss: Tensor, table: list[Tensor]) -> list[Tensor]:
    """Return the gradient by each sample's logits; zeros where the loss does not reach."""
    found = torch.autograd.grad(loss, table, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, table, strict=True)]


def streams_of(
    advantages: list[float],
    rollout: list[float] | None = None,
    old: list[float] | None = None,
    teacher: list[float] | None = None,
) -> Streams:
    """Make the streams of one sequence that trains everywhere, from plain numbers."""
    n = len(advantages)
    return Streams(
        mask_N=torch.ones(n, dtype=torch.bool),
        sequence_N=torch.zeros(n, dtype=torch.int64),
        advantages_N=torch.tensor(advantages, dtype=torch.float64),
        weights_N=torch.ones(n, dtype=torch.float64),
        rollout_logprobs_N=torch.tensor(rollout or [0.0] * n, dtype=torch.float64),
        tokens_S=torch.tensor([n]),
        copies_S=torch.tensor([1]),
        old_logprobs_N=None if old is None else torch.tensor(old, dtype=torch.float64),
        teacher_logprobs_N=None if teacher is None else torch.tensor(teacher, dtype=torch.float64),
    )
