"""The pre-training loss of one microbatch: next token, MTP depths, router balance.

Each depth is a mean over its own labels of the GLOBAL batch, so that microbatching and packing
change nothing; the caller gives the denominators. All depths share one chunked pass over the output
head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.models.moe import Routing
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import chunked_loss_and_logprobs
from fivefold.train.balance import sequence_balance_loss
from fivefold.train.batch import Batch


class LossParts(NamedTuple):
    """One microbatch's loss and what it is made of."""

    total: Tensor
    """Scalar to differentiate: this microbatch's share of the step's loss."""
    depth_nats: Tensor
    """This microbatch's share of the mean loss of each depth, nats a token, without gradient."""
    balance: Tensor
    """Its share of the mean sequence balance loss over rows and routers, without gradient."""
    main_routing: list[Routing]
    """Routing of the main stack's MoE layers."""
    mtp_routing: list[Routing]
    """Routing of the MTP layer, one a depth."""


def pretrain_loss(
    model: Transformer,
    batch: Batch,
    *,
    denominators: Sequence[int],
    batch_rows: int,
    mtp_weight: float,
    balance_weight: float,
    chunk_tokens: int,
) -> LossParts:
    """Compute the loss of one microbatch.

    Args:
        model: the model, in training.
        batch: the microbatch, with labels for each depth to train.
        denominators: labels of the whole step at each depth.
        batch_rows: rows of the whole step.
        mtp_weight: weight of the mean over MTP depths.
        balance_weight: weight of the sequence balance loss.
        chunk_tokens: tokens whose logits exist at a time.
    """
    rows = batch.ids_BT.shape[0]
    around = model.surroundings(batch.positions_BT, batch.documents_BT)
    hidden_BTD, main_routing = model(batch.ids_BT, around=around)
    states, mtp_routing = [hidden_BTD], []
    for ahead_BT in batch.ahead_BT:
        assert model.mtp is not None, "MTP labels need an MTP layer"
        state_BTD, routing = model.mtp(states[-1], model.embed_tokens(ahead_BT), around)
        states.append(state_BTD)
        mtp_routing += [] if routing is None else [routing]
    depths = len(states) - 1
    scale = [1.0] + [mtp_weight / depths] * depths
    weights = torch.tensor(
        [s / max(d, 1) for s, d in zip(scale, denominators, strict=True)],
        device=hidden_BTD.device,
    )
    tokens = batch.ids_BT.numel()
    loss, logprobs = chunked_loss_and_logprobs(
        torch.cat([state.flatten(0, 1) for state in states]),
        model.lm_head.weight,
        torch.cat([labels.flatten() for labels in batch.labels_BT]),
        weights.repeat_interleave(tokens),
        chunk_tokens=chunk_tokens,
    )
    sums = -logprobs.view(depths + 1, tokens).sum(1)
    depth_nats = sums / torch.tensor(denominators, device=sums.device).clamp_min(1)
    routed = main_routing + mtp_routing
    balance = torch.zeros((), device=loss.device)
    if routed and balance_weight:
        mean = torch.stack([sequence_balance_loss(r, rows) for r in routed]).mean()
        balance = mean * (rows / batch_rows)
        loss = loss + balance_weight * balance
    return LossParts(loss, depth_nats, balance.detach(), main_routing, mtp_routing)
