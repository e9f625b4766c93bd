"""A policy's loss through the output head, without logits of more than a chunk of tokens.

A loss that depends on the model through log-probabilities alone needs no backward pass of its own:
take the log-probabilities without a gradient, differentiate the loss by them, and let the chunked
cross-entropy carry that slope as token weights. Surprise: the second sweep over the head skips
every token whose slope is 0: masked by IcePop, clipped, or without advantage.
"""

import torch
from torch import Tensor

from fivefold.ops.chunked_cross_entropy import IGNORED, chunked_cross_entropy, token_logprobs
from fivefold.rl.config import ReductionConfig
from fivefold.rl.layout import PackedSamples
from fivefold.rl.reduction import PolicyLoss, Totals, reduce_loss
from fivefold.rl.streams import TokenLossFunction


def policy_loss(
    hidden_ND: Tensor,
    head_WD: Tensor,
    packed: PackedSamples,
    token_loss: TokenLossFunction,
    totals: Totals,
    reduction: ReductionConfig,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
) -> PolicyLoss:
    """Return a microbatch's share of a step's loss, differentiable by hidden states and head.

    `hidden_ND` are the final states of `packed.ids_BT`, flat. `temperature` is that of the
    sampling: the policy is the distribution that was sampled, and no other.
    """
    labels_N = packed.labels_BT.flatten()
    scaled_ND = _scale(hidden_ND, temperature)
    logprobs_N = token_logprobs(scaled_ND.detach(), head_WD.detach(), labels_N, chunk_tokens)
    with torch.enable_grad():
        logprobs_N.requires_grad_()
        share = reduce_loss(
            token_loss(logprobs_N, packed.streams), packed.streams, totals, reduction
        )
        (slope_N,) = torch.autograd.grad(share.total, logprobs_N)
    # A NaN slope is not 0: it stays, and the step's gradient check finds it.
    used_N = labels_N.where(slope_N != 0, IGNORED)
    carrier = chunked_cross_entropy(scaled_ND, head_WD, used_N, -slope_N, chunk_tokens=chunk_tokens)
    total = carrier + (share.total - carrier).detach()
    return PolicyLoss(total, share.measured)


def policy_logprobs(
    hidden_ND: Tensor,
    head_WD: Tensor,
    packed: PackedSamples,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
) -> Tensor:
    """Return the log-probability [N] in nats of each label that trains, 0 elsewhere; no gradient.

    For the old policy (`PackedSamples.with_old`), for a teacher, and for `measure_mismatch`.
    """
    scaled_ND = _scale(hidden_ND, temperature)
    labels_N = packed.labels_BT.flatten()
    return token_logprobs(scaled_ND.detach(), head_WD.detach(), labels_N, chunk_tokens)


def _scale(hidden_ND: Tensor, temperature: float) -> Tensor:
    """Divide the logits by the temperature: they are linear in the states."""
    assert temperature > 0, f"a policy's temperature is positive, not {temperature}"
    return hidden_ND if temperature == 1 else hidden_ND / temperature
