"""The losses of `losses`, taken apart for the stages of a pipeline.

The head's stage takes the language losses of all depths, each stage the auxiliary losses of its own
routers and indexers. Denominators are of the whole step and of the whole model, so that the shares
of microbatches, stages, data and context ranks add up to the loss of one process.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.models.config import ModelConfig
from fivefold.models.moe import Routing
from fivefold.models.surroundings import IndexerMode, Surroundings
from fivefold.models.transformer import HeadLoss, Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.parallel.context.across import ContextParallel
from fivefold.parallel.context.shard import TokenShard
from fivefold.parallel.pipeline.program import Seen
from fivefold.parallel.pipeline.split import mtp_depths
from fivefold.train.balance import BalanceTracker, sequence_balance_loss, shared_balance_loss
from fivefold.train.batch import Batch, make_batch
from fivefold.train.config import GradientConfig
from fivefold.train.losses import vocabulary_loss
from fivefold.train.schedule import mtp_weight


@dataclass(frozen=True)
class StagedBatch(Batch):
    """A microbatch for all stages of a rank; along `cp` this rank's tokens as one row."""

    surround: Callable[[], Surroundings]
    """Works out who sees whom, for one forward: every microbatch has its batch all the step, and
    masks would fill the memory."""
    shard: TokenShard | None
    """This rank's tokens along `cp`."""


class StagedLanguageLoss:
    """`language_objective` or, where the indexers warm up, `warm_up_objective`."""

    def __init__(
        self,
        model: ModelConfig,
        config: GradientConfig,
        indexer: IndexerMode = "frozen",
        index_weight: float = 1.0,
    ) -> None:
        self.indexer: IndexerMode = indexer
        self._model, self._config, self._index_weight = model, config, index_weight
        self.depths = min(mtp_depths(model), 1) if indexer == "warm_up" else mtp_depths(model)
        layers = [*range(model.num_hidden_layers)] + [model.num_hidden_layers] * self.depths
        self._indexers = len(layers)
        self._routers = sum(model.is_moe(layer) for layer in layers)
        self._measured: dict[str, Tensor] = {}

    def begin(self, whole: Rows, tokens_before: int, balance: BalanceTracker) -> None:
        """Start the step on the rows `whole`; `balance` counts what this rank's stages route."""
        self._whole, self._tokens_before, self._balance = whole, tokens_before, balance
        self._measured = {}

    def batches(
        self, parts: Sequence[Rows], model: Transformer, context: ContextParallel | None = None
    ) -> list[StagedBatch]:
        """Return microbatches of this step as tensors; `model` has the attention that runs."""
        return [self._batch(part, model, context) for part in parts]

    def _batch(
        self, part: Rows, model: Transformer, context: ContextParallel | None
    ) -> StagedBatch:
        device, keeps_padding = model.speeds_R.device, self.indexer != "frozen"
        batch = make_batch(part, self.depths, device, keeps_padding=keeps_padding)
        places = batch.positions_BT, batch.documents_BT
        if context is None:
            surround = functools.partial(model.surroundings, *places, indexer=self.indexer)
            return StagedBatch(**vars(batch), surround=surround, shard=None)
        dealt = context.deal(model, *places, indexer=self.indexer)
        surround = functools.partial(
            context.surroundings, model, *places, indexer=self.indexer, dealt=dealt
        )
        own = batch.of_tokens(dealt.shard.take)
        return StagedBatch(**vars(own), surround=surround, shard=dealt.shard)

    def measured(self, device: torch.device) -> dict[str, Tensor]:
        """Return this rank's share of every metric: the same names on all ranks."""
        none = torch.zeros((), device=device)
        return {name: self._measured.get(name, none) for name in self._names()}

    def head(
        self, states: Sequence[Tensor], head_WD: Tensor, microbatch: Batch, head_loss: HeadLoss
    ) -> Tensor | None:
        """Return the share of the losses over the vocabulary; none in the warm-up."""
        if self.indexer == "warm_up":
            return None
        loss, nats = vocabulary_loss(
            states,
            head_WD,
            microbatch,
            self._whole,
            mtp_weight=mtp_weight(self._tokens_before, self._config),
            chunk_tokens=self._config.loss_chunk_tokens,
            head_loss=head_loss,
        )
        for name, share in nats.items():
            self._measure(name, share)
        if microbatch.weights_BT is not None:
            self._measure("answer_tokens", (microbatch.labels_BT[0] != IGNORED).sum())
        return loss

    def auxiliary(self, seen: Seen, microbatch: StagedBatch) -> Tensor | None:
        """Count what was routed; return the share of the routers' and indexers' losses."""
        is_warm_up = self.indexer == "warm_up"
        shares = []
        routed = [] if is_warm_up else seen.main_routing + seen.mtp_routing
        if routed:
            self._balance.add(seen.main_routing, seen.mtp_routing, seen.routers_below)
        if routed and self._config.balance_loss_weight:
            balance = self._balance_share(routed, microbatch)
            self._measure("balance_loss", balance)
            shares.append(self._config.balance_loss_weight * balance)
        if seen.index_losses:
            queries = int((self._whole.document[:, :-1] >= 0).sum())
            total = torch.stack([loss.total for loss in seen.index_losses]).sum()
            index = total / (self._indexers * max(queries, 1))
            self._measure("index_kl_nats", index)
            shares.append(index if is_warm_up else self._index_weight * index)
        return sum(shares[1:], shares[0]) if shares else None

    def _balance_share(self, routed: Sequence[Routing], microbatch: StagedBatch) -> Tensor:
        shard = microbatch.shard
        if shard is not None:
            rows = shard.rows
            losses = [shared_balance_loss(routing, shard) for routing in routed]
        else:
            rows = len(microbatch.ids_BT)
            losses = [sequence_balance_loss(routing, rows) for routing in routed]
        return torch.stack(losses).sum() / self._routers * (rows / len(self._whole.ids))

    def _names(self) -> list[str]:
        if self.indexer == "warm_up":
            return ["index_kl_nats"]
        names = ["loss_nats", *(f"mtp{depth + 1}_loss_nats" for depth in range(self.depths))]
        names += ["balance_loss"] * bool(self._routers and self._config.balance_loss_weight)
        names += ["index_kl_nats"] * (self.indexer == "sparse")
        return names + ["answer_tokens"] * (self._whole.weight is not None)

    def _measure(self, name: str, share: Tensor) -> None:
        share = share.detach()
        before = self._measured.get(name)
        self._measured[name] = share if before is None else before + share
