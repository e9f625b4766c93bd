"""Embedding and output head cut by vocabulary, and the loss without whole logits on any rank.

A rank holds a run of rows of each table. It looks up what it has, zeros elsewhere, and the sum over
ranks is the embedding. The loss goes chunk by chunk as `ops.chunked_cross_entropy` does: the ranks
agree on the largest logit of a token, then on the sum of exponentials and the label's logit, three
numbers a token; everything else stays with the rank's columns. Source: Shoeybi et al. 2019
(Megatron-LM), section 3.

Surprise: the gradient of the hidden states is that of this rank's columns. The gather before the
head adds the ranks' gradients up (`parallel.sequence`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.ops.product import common_rows, product
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.mesh import Group
from fivefold.parallel.sequence import TensorAxis


class VocabularyEmbedding(nn.Embedding):
    """The rows `begin` on of an embedding; gives this rank's part of the sequence."""

    axis: TensorAxis
    begin: int

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Look up ids (B, T), the same on all tensor ranks; returns (B, T / ranks, D)."""
        local_BT = input - self.begin
        is_elsewhere_BT = (local_BT < 0) | (local_BT >= len(self.weight))
        rows_BTD = F.embedding(local_BT.masked_fill(is_elsewhere_BT, 0), self.weight)
        return self.axis.scatter_sum(rows_BTD.masked_fill(is_elsewhere_BT[..., None], 0.0))


def vocabulary_loss_and_logprobs(
    hidden_TD: Tensor,
    weight_WD: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    chunk_tokens: int,
    begin: int,
    group: Group,
) -> tuple[Tensor, Tensor]:
    """Return what `chunked_loss_and_logprobs` does, from some rows of the head.

    `weight_WD` are the head's rows from `begin` on; all else is the same on the ranks of `group`,
    and so is the result.
    """
    assert chunk_tokens > 0, f"chunk_tokens must be positive, not {chunk_tokens}"
    return _VocabularyCrossEntropy.apply(
        hidden_TD, weight_WD, labels_T, token_weights_T, chunk_tokens, begin, group
    )


class _VocabularyCrossEntropy(torch.autograd.Function):
    """Loss and log-probabilities forward, stored gradients times one scalar backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_WD: Tensor,
        labels_T: Tensor,
        token_weights_T: Tensor | None,
        chunk_tokens: int,
        begin: int,
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden_TD.dtype, torch.float32)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden_TD = torch.zeros_like(hidden_TD) if wants_hidden else None
        d_weight_WD = torch.zeros_like(weight_WD, dtype=exact) if wants_weight else None
        kept = (labels_T != IGNORED).nonzero().squeeze(1)
        logprobs_T = torch.zeros_like(labels_T, dtype=exact)
        for rows in kept.split(chunk_tokens):
            hidden_PD = F.pad(hidden_TD[rows], (0, 0, 0, common_rows(len(rows)) - len(rows)))
            logits_PW = product(hidden_PD, weight_WD.T).to(exact)
            logits_CW = logits_PW[: len(rows)]
            labels_C1 = labels_T[rows, None] - begin
            logprobs_C1, total_C1 = _exponentiate(logits_CW, labels_C1, group)
            logprobs_T[rows] = logprobs_C1.squeeze(1)
            if d_hidden_TD is None and d_weight_WD is None:
                del logits_PW, logits_CW
                continue
            weights_C1 = torch.ones_like(total_C1)
            if token_weights_T is not None:
                weights_C1.copy_(token_weights_T[rows, None])
            # d loss / d logits = token weight x (softmax - one-hot label).
            is_here_C1, place_C1 = _places(labels_C1, len(weight_WD))
            logits_CW.mul_(weights_C1 / total_C1)
            logits_CW.scatter_add_(1, place_C1, -weights_C1 * is_here_C1)
            d_logits_PW = logits_PW.to(hidden_TD.dtype)
            if d_hidden_TD is not None:
                d_hidden_TD[rows] = product(d_logits_PW, weight_WD)[: len(rows)]
            if d_weight_WD is not None:
                d_weight_WD.add_(product(d_logits_PW.T, hidden_PD))
            del logits_PW, logits_CW, d_logits_PW
        weighted_T = logprobs_T if token_weights_T is None else logprobs_T * token_weights_T
        total = -weighted_T[kept].sum(dtype=exact)
        ctx.gradients = [d_hidden_TD, None if d_weight_WD is None else d_weight_WD.to(weight_WD)]
        ctx.is_spent = False
        ctx.mark_non_differentiable(logprobs_T)
        return total, logprobs_T

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *d_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        assert not ctx.is_spent, "the backward pass of a chunked cross-entropy runs once"
        ctx.is_spent = True
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(d_outputs[0])
        return (*gradients, None, None, None, None, None)


def _exponentiate(logits_CW: Tensor, labels_C1: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Turn logits into unnormalised probabilities in place; return label log-probs and row sums."""
    logits_CW.sub_(all_reduce(logits_CW.amax(dim=1, keepdim=True), group, "max"))
    is_here_C1, place_C1 = _places(labels_C1, logits_CW.shape[1])
    label_C1 = logits_CW.gather(1, place_C1).masked_fill(~is_here_C1, 0.0)
    sums_2C1 = torch.stack([label_C1, logits_CW.exp_().sum(dim=1, keepdim=True)])
    label_C1, total_C1 = all_reduce(sums_2C1, group)
    return label_C1 - total_C1.log(), total_C1


def _places(labels_C1: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return which labels are among this rank's rows, and their places; 0 for the others."""
    is_here_C1 = (labels_C1 >= 0) & (labels_C1 < rows)
    return is_here_C1, labels_C1.masked_fill(~is_here_C1, 0)
