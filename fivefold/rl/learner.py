"""Updates of the policy: pack, forward, loss, backward, clip, step; what to do with broken ones.

Knows samples with streams and a loss on tokens, and no algorithm. With several updates on a batch,
each takes groups of its own, and the old policy's log-probabilities of all of them are recorded
before the first; with one the current ones are the old ones, and cost nothing.

Surprise: the comparison of trainer and engine costs nothing either. It looks at the very
log-probabilities of which the loss is made, or at the recorded old ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fivefold.models.transformer import Transformer
from fivefold.rl.algorithm import make_token_loss
from fivefold.rl.config import AlgorithmConfig, IcePopConfig
from fivefold.rl.forward import PolicyForward
from fivefold.rl.layout import PackedSamples
from fivefold.rl.loop_config import LoopConfig, UpdateConfig
from fivefold.rl.mismatch import Mismatch, measure_mismatch, merge_mismatches
from fivefold.rl.pack import pack_samples
from fivefold.rl.reduction import count_totals
from fivefold.rl.sample import Sample
from fivefold.rl.streams import Streams, TokenLoss, TokenLossFunction
from fivefold.train.balance import BalanceTracker, max_violation
from fivefold.train.compute import ComputeModel
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.step import clip_gradients


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    measured: dict[str, float]
    """Loss and marks, means over the step's trained tokens."""
    gradient_norm: float
    """Before clipping."""
    is_skipped: bool
    """Was it left out for a non-finite gradient or loss?"""
    max_violation: float
    """Of the most uneven router, on real tokens."""


class PolicyLearner:
    """A model, its optimizer and the way in which a batch changes them."""

    def __init__(self, model: Transformer, compute: ComputeModel, config: LoopConfig) -> None:
        """Train `model` by running `compute`; what shall not learn is frozen by now."""
        self.model, self.compute = model, compute
        self._config: UpdateConfig = config.update
        self._algorithm: AlgorithmConfig = config.algorithm
        # What is counted as outside the window is what IcePop masks; others have GLM-5's.
        loss = config.algorithm.loss
        self._beta = loss.beta if isinstance(loss, IcePopConfig) else IcePopConfig().beta
        # The deterministic forward attends to whole documents, as the engine does.
        self._shares_prompts = config.update.shares_prompts and not config.engine.deterministic
        self.optimizer = HybridOptimizer(
            model.named_parameters(), model.config, config.update.optimizer
        )
        self._balance = BalanceTracker(model)
        self._forward = PolicyForward(
            compute.model,
            temperature=config.sampling.temperature,
            chunk_tokens=config.update.loss_chunk_tokens,
            deterministic=config.engine.deterministic,
            replays_routing=config.sampling.replays_routing,
        )

    def train(
        self, samples: Sequence[Sample], updates_before: int
    ) -> tuple[list[Update], Mismatch]:
        """Take the updates of one batch; `updates_before` is the schedule's place."""
        config = self._config
        shares = split_groups(samples, config.updates_per_batch)
        packs = [self.pack(share) for share in shares]
        mismatches: list[Mismatch] = []
        if len(shares) > 1:
            self.compute.refresh()
            for share, packed in zip(shares, packs, strict=True):
                for number, part in enumerate(packed):
                    old_N = self._forward.logprobs(part, share)
                    mismatches.append(measure_mismatch(old_N, part.streams, self._beta))
                    packed[number] = part.with_old(old_N)
        updates = []
        for number, (share, packed) in enumerate(zip(shares, packs, strict=True), start=1):
            found = None if mismatches and len(shares) > 1 else mismatches
            norm, measured = self.accumulate(share, packed, found)
            # A loss that is NaN may have slopes of 0, which never reach the gradient.
            is_skipped = not (math.isfinite(norm) and math.isfinite(measured["loss"]))
            if not is_skipped:
                self.optimizer.step(self.learning_rate(updates_before + number))
            self.optimizer.zero_grad()
            counts = self._balance.update(0.0 if is_skipped else config.router_bias_rate)
            worst = max((max_violation(count) for count in counts), default=0.0)
            updates.append(Update(measured, norm, is_skipped, worst))
        return updates, merge_mismatches(mismatches)

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Return the log-probability of each token that trains under the present weights, else 0.

        Every sample has such a token.
        """
        found: dict[int, np.ndarray] = {}
        for part in self.pack(samples):
            found |= part.unpack(self._forward.logprobs(part, samples))
        return [found[number] for number in range(len(samples))]

    def pack(self, samples: Sequence[Sample]) -> list[PackedSamples]:
        """Pack the samples of one update into microbatches."""
        return pack_samples(
            samples,
            self._config.row_tokens,
            self._config.microbatch_rows,
            shares_prompts=self._shares_prompts,
            device=self.model.lm_head.weight.device,
        )

    def accumulate(
        self,
        samples: Sequence[Sample],
        packed: Sequence[PackedSamples],
        mismatches: list[Mismatch] | None = None,
    ) -> tuple[float, dict[str, float]]:
        """Leave one update's clipped gradient in the model; return its norm and what was measured.

        `mismatches` receives the comparison with the engine; None: it was made before.
        """
        totals = count_totals(samples)
        token_loss = make_token_loss(self._algorithm)
        if mismatches is not None:
            token_loss = _watched(token_loss, mismatches, self._beta)
        self.optimizer.zero_grad()
        self.compute.refresh()
        measured: dict[str, Tensor] = {}
        for part in packed:
            share, routing = self._forward.loss(
                part, samples, token_loss, totals, self._algorithm.reduction
            )
            share.total.backward()
            self.compute.collect()
            self._balance.add(routing, [])
            for name, value in {"loss": share.total.detach(), **share.measured}.items():
                measured[name] = measured[name] + value if name in measured else value
        norms = clip_gradients(self.optimizer.parameter_groups, self._config.clip_norm)
        values = torch.stack([value.float() for value in measured.values()]).tolist()
        return math.hypot(*norms.values()), dict(zip(measured, values, strict=True))

    def learning_rate(self, update: int) -> float:
        """Return the rate of update number `update`, from 1."""
        warm_up = self._config.warmup_updates
        return self._config.lr * (min(update / warm_up, 1.0) if warm_up else 1.0)


def split_groups(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """Cut samples into at most `count` parts of about equally many groups, none cut apart.

    Parts without a token that trains are left out.
    """
    names = list(dict.fromkeys(sample.group for sample in samples if sample.loss_tokens))
    part_of = {name: place * count // len(names) for place, name in enumerate(names)}
    parts: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        if sample.group in part_of:
            parts[part_of[sample.group]].append(sample)
    return [part for part in parts if part]


def _watched(
    token_loss: TokenLossFunction, mismatches: list[Mismatch], beta: float
) -> TokenLossFunction:
    """Return the same loss, which also compares what it is given with the engine."""

    def watch(logprobs_N: Tensor, streams: Streams) -> TokenLoss:
        mismatches.append(measure_mismatch(logprobs_N, streams, beta))
        return token_loss(logprobs_N, streams)

    return watch
