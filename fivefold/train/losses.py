"""Objectives: what a microbatch is asked to learn, as a sum that microbatches share.

Each loss is a mean over the labels of the GLOBAL batch, so that microbatching and packing change
nothing: an objective sees the whole step's rows for its denominators, and the part that it runs.
Weights of tokens, where rows have them, multiply losses and stay out of the denominators.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.models.moe import Routing
from fivefold.models.surroundings import IndexerMode, Surroundings
from fivefold.models.transformer import HeadLoss, Transformer
from fivefold.ops.chunked_cross_entropy import chunked_loss_and_logprobs
from fivefold.ops.index_loss import IndexLoss
from fivefold.parallel.context.across import ContextParallel
from fivefold.parallel.context.attention import ContextSurroundings
from fivefold.train.balance import sequence_balance_loss, shared_balance_loss
from fivefold.train.batch import Batch, label_counts, make_batch
from fivefold.train.config import GradientConfig
from fivefold.train.schedule import mtp_weight


class LossParts(NamedTuple):
    """One microbatch's loss and what it is made of."""

    total: Tensor
    """Scalar to differentiate: this microbatch's share of the step's loss."""
    measured: dict[str, Tensor]
    """This microbatch's share of each metric, scalars without gradient; shares add up."""
    main_routing: list[Routing]
    """Routing of the main stack's MoE layers."""
    mtp_routing: list[Routing]
    """Routing of the MTP layer, one a depth."""


class Objective(Protocol):
    """What a stage asks the model to learn."""

    def __call__(
        self,
        model: Transformer,
        part: Rows,
        whole: Rows,
        tokens_before: int,
        context: ContextParallel | None = None,
    ) -> LossParts:
        """Return the share of the microbatch `part` in the loss of the step `whole`.

        `tokens_before` is the schedule's place. With `context`, ranks share the microbatch's tokens
        and their shares add up.
        """
        ...


def language_objective(
    config: GradientConfig, indexer: IndexerMode = "frozen", index_weight: float = 1.0
) -> Objective:
    """Return the loss of next token, MTP depths, router balance and, where it learns, the indexer.

    Indexers are trained by their own loss alone, and their gradients are clipped apart, so that
    `index_weight` matters only against the epsilon of the optimizer.
    """

    def objective(
        model: Transformer,
        part: Rows,
        whole: Rows,
        tokens_before: int,
        context: ContextParallel | None = None,
    ) -> LossParts:
        depths = model.config.fivefold.mtp_depths if model.mtp is not None else 0
        return language_loss(
            model,
            part,
            whole,
            depths=depths,
            mtp_weight=mtp_weight(tokens_before, config),
            balance_weight=config.balance_loss_weight,
            chunk_tokens=config.loss_chunk_tokens,
            indexer=indexer,
            index_weight=index_weight,
            context=context,
        )

    return objective


def warm_up_objective(
    model: Transformer,
    part: Rows,
    whole: Rows,
    tokens_before: int,
    context: ContextParallel | None = None,
) -> LossParts:
    """Teach the indexers the dense attention; everything else is frozen and gets no gradient.

    The MTP layer's indexer learns at its first depth.
    """
    depths = 0 if model.mtp is None else 1
    batch, around = _lay_out(model, part, depths, "warm_up", context)
    hidden_BTD, _, index_losses = model(batch.ids_BT, around=around)
    if model.mtp is not None:
        ahead = model.embed_tokens(batch.ahead_BT[0])
        index_loss = model.mtp(hidden_BTD, ahead, around).index_loss
        index_losses += [] if index_loss is None else [index_loss]
    loss = index_share(index_losses, whole)
    return LossParts(loss, {"index_kl_nats": loss.detach()}, [], [])


def _lay_out(
    model: Transformer,
    part: Rows,
    depths: int,
    indexer: IndexerMode,
    context: ContextParallel | None,
) -> tuple[Batch, Surroundings]:
    """Return a microbatch as tensors, with a context those of this rank, and who sees whom."""
    device = model.speeds_R.device
    batch = make_batch(part, depths, device, keeps_padding=indexer != "frozen")
    places = batch.positions_BT, batch.documents_BT
    if context is None:
        return batch, model.surroundings(*places, indexer=indexer)
    around = context.surroundings(model, *places, indexer=indexer)
    return batch.of_tokens(around.shard.take), around


def index_share(losses: list[IndexLoss], whole: Rows) -> Tensor:
    """Return a microbatch's share of the indexers' loss: mean over queries of a step and layers."""
    queries = int((whole.document[:, :-1] >= 0).sum())
    return torch.stack([loss.total for loss in losses]).sum() / (len(losses) * max(queries, 1))


def language_loss(
    model: Transformer,
    part: Rows,
    whole: Rows,
    *,
    depths: int,
    mtp_weight: float,
    balance_weight: float,
    chunk_tokens: int,
    indexer: IndexerMode = "frozen",
    index_weight: float = 1.0,
    context: ContextParallel | None = None,
) -> LossParts:
    """Compute the language loss of the microbatch `part` of the step `whole`.

    `mtp_weight` multiplies the mean over MTP depths, `balance_weight` the sequence balance loss;
    all depths share one pass over the output head, `chunk_tokens` logits at a time.
    """
    batch, around = _lay_out(model, part, depths, indexer, context)
    hidden_BTD, main_routing, index_losses = model(batch.ids_BT, around=around)
    states, mtp_routing = [hidden_BTD], []
    for ahead_BT in batch.ahead_BT:
        assert model.mtp is not None, "MTP labels need an MTP layer"
        embedded = model.embed_tokens(ahead_BT)
        state_BTD, routing, index_loss = model.mtp(states[-1], embedded, around)
        states.append(state_BTD)
        index_losses += [] if index_loss is None else [index_loss]
        mtp_routing += [] if routing is None else [routing]
    loss, measured = vocabulary_loss(
        states,
        model.lm_head.weight,
        batch,
        whole,
        mtp_weight=mtp_weight,
        chunk_tokens=chunk_tokens,
        head_loss=model.head_loss,
    )
    routed = main_routing + mtp_routing
    if routed and balance_weight:
        rows = len(part.ids)
        if isinstance(around, ContextSurroundings):
            shares = [shared_balance_loss(routing, around.shard) for routing in routed]
        else:
            shares = [sequence_balance_loss(routing, rows) for routing in routed]
        mean = torch.stack(shares).mean()
        balance = mean * (rows / len(whole.ids))
        loss = loss + balance_weight * balance
        measured["balance_loss"] = balance.detach()
    if index_losses:
        index = index_share(index_losses, whole)
        loss = loss + index_weight * index
        measured["index_kl_nats"] = index.detach()
    return LossParts(loss, measured, main_routing, mtp_routing)


def vocabulary_loss(
    states_BTD: Sequence[Tensor],
    head_WD: Tensor,
    batch: Batch,
    whole: Rows,
    *,
    mtp_weight: float,
    chunk_tokens: int,
    head_loss: HeadLoss = chunked_loss_and_logprobs,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a microbatch's share of the loss of all depths, and that of each depth's metric.

    `states_BTD` are normalised: the main stack's, then one a depth of the MTP layer. `head_loss`
    knows which rows of the head `head_WD` are.
    """
    device, depths = head_WD.device, len(batch.ahead_BT)
    denominators = torch.tensor(label_counts(whole, depths), device=device).clamp_min(1)
    scale = torch.tensor([1.0] + [mtp_weight / max(depths, 1)] * depths, device=device)
    tokens = batch.ids_BT.numel()
    factors = (scale / denominators).repeat_interleave(tokens)
    if batch.weights_BT is not None:
        factors = factors * torch.cat([weights.flatten() for weights in batch.weights_BT])
    loss, logprobs = head_loss(
        torch.cat([state.flatten(0, 1) for state in states_BTD]),
        head_WD,
        torch.cat([labels.flatten() for labels in batch.labels_BT]),
        factors,
        chunk_tokens=chunk_tokens,
    )
    nats = -logprobs.view(depths + 1, tokens).sum(1) / denominators
    measured = {"loss_nats": nats[0]}
    return loss, measured | {f"mtp{n}_loss_nats": nats[n] for n in range(1, depths + 1)}
