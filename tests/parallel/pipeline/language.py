"""The language loss of `train.losses`, taken apart for the stages of a pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.models.config import ModelConfig
from fivefold.models.surroundings import IndexerMode
from fivefold.ops.chunked_cross_entropy import chunked_loss_and_logprobs
from fivefold.parallel.pipeline.program import Seen
from fivefold.parallel.pipeline.split import mtp_depths
from fivefold.train.balance import sequence_balance_loss
from fivefold.train.batch import Batch, label_counts, make_batch


@dataclass
class StagedLanguageLoss:
    """The losses of one step; denominators are of `whole`, all microbatches and data ranks."""

    config: ModelConfig
    whole: Rows
    mtp_weight: float = 0.3
    balance_weight: float = 0.01
    chunk_tokens: int = 16
    indexer: IndexerMode = "frozen"
    index_weight: float = 1.0
    measured: dict[str, Tensor] = field(default_factory=dict)
    """Shares of the metrics that this rank's stages saw."""

    @property
    def depths(self) -> int:
        if self.indexer == "warm_up":
            return min(mtp_depths(self.config), 1)
        return mtp_depths(self.config)

    def batches(self, parts: Sequence[Rows]) -> list[Batch]:
        """Return microbatches of this step as tensors."""
        keeps = self.indexer != "frozen"
        return [make_batch(part, self.depths, "cpu", keeps_padding=keeps) for part in parts]

    def head(self, states: Sequence[Tensor], head_WD: Tensor, microbatch: Batch) -> Tensor | None:
        if self.indexer == "warm_up":
            return None
        depths, tokens = self.depths, microbatch.ids_BT.numel()
        denominators = torch.tensor(label_counts(self.whole, depths)).clamp_min(1)
        scale = torch.tensor([1.0] + [self.mtp_weight / max(depths, 1)] * depths)
        loss, logprobs = chunked_loss_and_logprobs(
            torch.cat([state.flatten(0, 1) for state in states]),
            head_WD,
            torch.cat([labels.flatten() for labels in microbatch.labels_BT]),
            (scale / denominators).repeat_interleave(tokens),
            chunk_tokens=self.chunk_tokens,
        )
        nats = -logprobs.view(depths + 1, tokens).sum(1) / denominators
        self._measure("loss_nats", nats[0])
        for depth in range(1, depths + 1):
            self._measure(f"mtp{depth}_loss_nats", nats[depth])
        return loss

    def auxiliary(self, seen: Seen, microbatch: Batch) -> Tensor | None:
        config = self.config
        rows = len(microbatch.ids_BT)
        shares = []
        routed = seen.main_routing + seen.mtp_routing
        if routed and self.balance_weight and self.indexer != "warm_up":
            routers = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
            routers += self.depths
            mean = torch.stack([sequence_balance_loss(r, rows) for r in routed]).sum() / routers
            balance = mean * (rows / len(self.whole.ids))
            self._measure("balance_loss", balance)
            shares.append(self.balance_weight * balance)
        if seen.index_losses:
            # index_share divides by the indexers that it is shown; here they are those of a stage.
            indexers = config.num_hidden_layers + self.depths
            queries = int((self.whole.document[:, :-1] >= 0).sum())
            total = torch.stack([loss.total for loss in seen.index_losses]).sum()
            index = total / (indexers * max(queries, 1))
            self._measure("index_kl_nats", index)
            shares.append(self.index_weight * index)
        return sum(shares[1:], shares[0]) if shares else None

    def _measure(self, name: str, share: Tensor) -> None:
        share = share.detach()
        self.measured[name] = self.measured[name] + share if name in self.measured else share
