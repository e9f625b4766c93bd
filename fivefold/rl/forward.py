"""The policy's forward pass over packed samples: plain, through replayed experts, or deterministic.

Deterministic, the trainer computes as the engine's deterministic mode does, bit for bit, down to
the softmax; the ratio of the two is then exactly 1. That needs the logits of a whole microbatch at
once, where the other ways project them in chunks. Indexers are frozen throughout: they select and
get no gradient (GLM-5 report, section 3.2).

Surprise: replayed experts are forced for real tokens and for padding alike; padding goes to the
first experts, and nothing reads what comes out.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fivefold.models.moe import Routing
from fivefold.models.stable import stable_forward
from fivefold.models.transformer import Transformer
from fivefold.ops.batch_invariant import BatchInvariant
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.rl.config import ReductionConfig
from fivefold.rl.head import policy_logprobs, policy_loss
from fivefold.rl.layout import PackedSamples
from fivefold.rl.reduction import PolicyLoss, Totals, reduce_loss
from fivefold.rl.rollout import Rollout
from fivefold.rl.sample import Sample, SampleError
from fivefold.rl.streams import TokenLossFunction


class PolicyForward:
    """Log-probabilities and losses of one model, always computed the same way."""

    def __init__(
        self,
        model: Transformer,
        *,
        temperature: float,
        chunk_tokens: int,
        deterministic: bool = False,
        replays_routing: bool = False,
    ) -> None:
        """Run `model`, whose weights may change between calls."""
        self._model, self._temperature, self._chunk_tokens = model, temperature, chunk_tokens
        self._deterministic, self._replays = deterministic, replays_routing

    def logprobs(self, packed: PackedSamples, samples: Sequence[Sample]) -> Tensor:
        """Return the log-probability [N] of each label that trains, 0 elsewhere; no gradient."""
        with torch.no_grad():
            hidden_ND = self._hidden(packed, samples)[0]
            if self._deterministic:
                return self._stable_logprobs(hidden_ND, packed)
            return policy_logprobs(
                hidden_ND,
                self._model.lm_head.weight,
                packed,
                chunk_tokens=self._chunk_tokens,
                temperature=self._temperature,
            )

    def loss(
        self,
        packed: PackedSamples,
        samples: Sequence[Sample],
        token_loss: TokenLossFunction,
        totals: Totals,
        reduction: ReductionConfig,
    ) -> tuple[PolicyLoss, list[Routing]]:
        """Return a microbatch's share of the loss, and the experts of its real places.

        `samples` are those that were packed, for the experts that they replay.
        """
        hidden_ND, routing = self._hidden(packed, samples)
        if self._deterministic:
            logprobs_N = self._stable_logprobs(hidden_ND, packed)
            loss = token_loss(logprobs_N, packed.streams)
            return reduce_loss(loss, packed.streams, totals, reduction), routing
        share = policy_loss(
            hidden_ND,
            self._model.lm_head.weight,
            packed,
            token_loss,
            totals,
            reduction,
            chunk_tokens=self._chunk_tokens,
            temperature=self._temperature,
        )
        return share, routing

    def _hidden(
        self, packed: PackedSamples, samples: Sequence[Sample]
    ) -> tuple[Tensor, list[Routing]]:
        if self._deterministic:
            assert packed.prefixes_BT is None, "the deterministic forward shares no prompts"
            output = stable_forward(
                self._model,
                packed.ids_BT,
                positions_BT=packed.positions_BT,
                documents_BT=packed.documents_BT,
            )
        else:
            output = self._model(
                packed.ids_BT,
                around=self._model.surroundings(
                    packed.positions_BT, packed.documents_BT, prefixes_BT=packed.prefixes_BT
                ),
                forced_routing=self._forced(packed, samples) if self._replays else None,
            )
        real_N = _real_places(packed)
        routing = [Routing(r.chosen_TA[real_N], r.scores_TE[real_N]) for r in output.routing]
        return output.hidden_BTD.flatten(0, 1), routing

    def _stable_logprobs(self, hidden_ND: Tensor, packed: PackedSamples) -> Tensor:
        labels_N = packed.labels_BT.flatten()
        kept_M = (labels_N != IGNORED).nonzero().squeeze(1)
        with BatchInvariant():
            logits_MW = self._model.logits(hidden_ND[kept_M])
        if self._temperature != 1:
            logits_MW = logits_MW / logits_MW.new_tensor([self._temperature])
        picked_M = logits_MW.log_softmax(-1).gather(1, labels_N[kept_M, None])[:, 0]
        return picked_M.new_zeros(len(labels_N)).index_put((kept_M,), picked_M)

    def _forced(self, packed: PackedSamples, samples: Sequence[Sample]) -> list[Tensor]:
        """Return the chosen experts [N, A] of each MoE layer."""
        first = _routing_of(samples[packed.members[0]])
        places = packed.ids_BT.numel()
        flat = np.empty((places, *first.shape[1:]), np.int64)
        flat[:] = np.arange(first.shape[2])
        for begin, length, member in packed.prompts:
            flat[begin : begin + length] = _routing_of(samples[member])[:length]
        parts = zip(packed.members, packed.begins, packed.lengths, packed.skipped, strict=True)
        for member, begin, length, skip in parts:
            flat[begin : begin + length] = _routing_of(samples[member])[skip : skip + length]
        forced = torch.from_numpy(flat).to(packed.ids_BT.device)
        return [layer.contiguous() for layer in forced.unbind(1)]


def _routing_of(sample: Sample) -> np.ndarray:
    if not isinstance(sample, Rollout) or sample.routing is None:
        raise SampleError(
            expected="recorded experts in every sample of a run that replays them",
            found=f"none in group `{sample.group}`",
            fix="Sample with `replays_routing`, or train without",
        )
    return sample.routing


def _real_places(packed: PackedSamples) -> Tensor:
    spans = [torch.arange(begin, begin + length) for begin, length in packed.spans]
    return torch.cat(spans).to(packed.ids_BT.device)
