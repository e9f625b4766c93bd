"""The output head and its cross-entropy, a chunk of tokens at a time (GLM-5 report 2.4.1).

The logits of 4096 tokens over GLM-5's vocabulary take 2.4 GiB in fp32, several times over in a
plain forward and backward pass. Here [chunk, W] of them exist at a time. The trick: the loss is a
sum over tokens, so its gradients are known up to one scalar as soon as a chunk's logits are. The
forward pass computes them and drops the logits; the backward pass multiplies by that scalar.

Rows whose label is `IGNORED` are skipped, not masked: padding, prompts and the last places of each
multi-token-prediction depth cost nothing. Surprise: a batch of several losses on one head (the main
one and the MTP depths) is cheapest as ONE call over the concatenated rows with per-token weights,
because each call holds a gradient of the head's size from its forward to its backward pass.

Shapes: T tokens, D width, W vocabulary, C tokens of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fivefold.ops.product import common_rows, product

IGNORED = -100
"""Label of a row without a target, PyTorch's own convention."""


def reference(
    hidden_TD: Tensor, weight_WD: Tensor, labels_T: Tensor, token_weights_T: Tensor | None = None
) -> Tensor:
    """Return the weighted sum of token losses in nats, from whole logits."""
    logits_TW = (hidden_TD @ weight_WD.T).to(_exact_dtype(hidden_TD.dtype))
    losses_T = F.cross_entropy(logits_TW, labels_T, reduction="none", ignore_index=IGNORED)
    return losses_T.sum() if token_weights_T is None else (losses_T * token_weights_T).sum()


def chunked_cross_entropy(
    hidden_TD: Tensor,
    weight_WD: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    chunk_tokens: int,
) -> Tensor:
    """Return the weighted SUM of token losses in nats (scalar, fp32); the caller divides it.

    Gradients flow to the hidden states and the head, not to the token weights. `labels_T` holds
    int64 ids or `IGNORED`; softmax and sums run in fp32 for any input dtype (fp64 for fp64). One
    backward pass per call: it reuses the gradients' memory.
    """
    return chunked_loss_and_logprobs(
        hidden_TD, weight_WD, labels_T, token_weights_T, chunk_tokens=chunk_tokens
    )[0]


def chunked_loss_and_logprobs(
    hidden_TD: Tensor,
    weight_WD: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Return `chunked_cross_entropy` and each label's log-probability [T], without gradient.

    Ignored rows have log-probability 0.
    """
    assert chunk_tokens > 0, f"chunk_tokens must be positive, not {chunk_tokens}"
    if torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_WD.requires_grad):
        return _ChunkedCrossEntropy.apply(
            hidden_TD, weight_WD, labels_T, token_weights_T, chunk_tokens
        )
    total, logprobs_T, _, _ = _sweep(
        hidden_TD, weight_WD, labels_T, token_weights_T, chunk_tokens, (False, False)
    )
    return total, logprobs_T


def token_logprobs(
    hidden_TD: Tensor, weight_WD: Tensor, labels_T: Tensor, chunk_tokens: int
) -> Tensor:
    """Return the log-probability [T] in nats of each label, fp32, without gradient; ignored: 0.

    A loss that is a function of log-probabilities, such as a policy gradient, needs no backward
    pass of its own: take them here, differentiate the loss by them, and give its negative
    derivative to `chunked_cross_entropy` as the token weights.
    """
    with torch.no_grad():
        return chunked_loss_and_logprobs(hidden_TD, weight_WD, labels_T, chunk_tokens=chunk_tokens)[
            1
        ]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and log-probabilities forward, stored gradients times one scalar backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_WD: Tensor,
        labels_T: Tensor,
        token_weights_T: Tensor | None,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        total, logprobs_T, ctx.d_hidden_TD, ctx.d_weight_WD = _sweep(
            hidden_TD,
            weight_WD,
            labels_T,
            token_weights_T,
            chunk_tokens,
            ctx.needs_input_grad[:2],
        )
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
        gradients = [ctx.d_hidden_TD, ctx.d_weight_WD]
        ctx.d_hidden_TD = ctx.d_weight_WD = None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(d_outputs[0])
        return (*gradients, None, None, None)


@torch.no_grad()
def _sweep(
    hidden_TD: Tensor,
    weight_WD: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None,
    chunk_tokens: int,
    wants_gradients: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return (total, logprobs_T, d_hidden_TD, d_weight_WD); gradients are None unless wanted."""
    exact = _exact_dtype(hidden_TD.dtype)
    kept = (labels_T != IGNORED).nonzero().squeeze(1)
    logprobs_T = torch.zeros_like(labels_T, dtype=exact)
    d_hidden_TD = torch.zeros_like(hidden_TD) if wants_gradients[0] else None
    # Chunks add up in fp32: a bf16 sum would lose a bit with every doubling of their number.
    d_weight_WD = torch.zeros_like(weight_WD, dtype=exact) if wants_gradients[1] else None
    for rows in kept.split(chunk_tokens):
        labels_C1 = labels_T[rows, None]
        # Rows of zeros behind a short chunk: few numbers of rows reach the products.
        hidden_PD = F.pad(hidden_TD[rows], (0, 0, 0, common_rows(len(rows)) - len(rows)))
        logits_PW = product(hidden_PD, weight_WD.T).to(exact)
        logits_CW = logits_PW[: len(rows)]
        logprobs_C1, total_C1 = _exponentiate(logits_CW, labels_C1)
        logprobs_T[rows] = logprobs_C1.squeeze(1)
        if not any(wants_gradients):
            # Two chunks' logits never exist at the same time, here and below.
            del logits_PW, logits_CW
            continue
        weights_C1 = torch.ones_like(total_C1)
        if token_weights_T is not None:
            weights_C1.copy_(token_weights_T[rows, None])
        # d loss / d logits = token weight x (softmax - one-hot label).
        logits_CW.mul_(weights_C1 / total_C1).scatter_add_(1, labels_C1, -weights_C1)
        d_logits_PW = logits_PW.to(hidden_TD.dtype)
        if d_hidden_TD is not None:
            d_hidden_TD[rows] = product(d_logits_PW, weight_WD)[: len(rows)]
        if d_weight_WD is not None:
            d_weight_WD.add_(product(d_logits_PW.T, hidden_PD))
        del logits_PW, logits_CW, d_logits_PW
    weighted_T = logprobs_T if token_weights_T is None else logprobs_T * token_weights_T
    total = -weighted_T[kept].sum(dtype=exact)
    if d_weight_WD is not None:
        d_weight_WD = d_weight_WD.to(weight_WD.dtype)
    return total, logprobs_T, d_hidden_TD, d_weight_WD


def _exponentiate(logits_CW: Tensor, labels_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into unnormalised probabilities in place; return label log-probs and row sums."""
    logits_CW.sub_(logits_CW.amax(dim=1, keepdim=True))
    label_logits_C1 = logits_CW.gather(1, labels_C1)
    total_C1 = logits_CW.exp_().sum(dim=1, keepdim=True)
    return label_logits_C1 - total_C1.log(), total_C1


def _exact_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
