"""From an algorithm's config to the one function that a trainer calls.

The trainer hands over log-probabilities and streams and gets a loss a token; which algorithm that
is, it cannot tell. Beside the loss's own marks, every algorithm reports the same four: how much the
policy's own samples surprise it (on-policy, an unbiased estimate of its entropy), the mean of rho,
how far this batch's steps have moved it, and with a teacher the gap to it.
"""

import functools

import torch
from torch import Tensor

from fivefold.rl.cispo import cispo_loss
from fivefold.rl.config import (
    AlgorithmConfig,
    CispoConfig,
    DoubleSidedConfig,
    GspoConfig,
    IcePopConfig,
    LossConfig,
    PpoClipConfig,
    TisConfig,
)
from fivefold.rl.distillation import with_teacher
from fivefold.rl.double_sided import double_sided_loss
from fivefold.rl.gspo import gspo_loss
from fivefold.rl.icepop import icepop_loss
from fivefold.rl.streams import Streams, TokenLoss, TokenLossFunction
from fivefold.rl.surrogate import ppo_clip_loss
from fivefold.rl.truncated import truncated_loss


def make_token_loss(config: AlgorithmConfig) -> TokenLossFunction:
    """Return the algorithm as a function from log-probabilities and streams to token losses."""
    loss_function = choose_loss(config.loss)

    def token_loss(logprobs_N: Tensor, streams: Streams) -> TokenLoss:
        shared = _shared_marks(logprobs_N.detach(), streams)
        if config.distillation is not None:
            streams = with_teacher(logprobs_N, streams, config.distillation)
        loss = loss_function(logprobs_N, streams)
        return TokenLoss(loss.loss_N, shared | loss.marks)

    return token_loss


def choose_loss(config: LossConfig) -> TokenLossFunction:
    """Return the loss that a config describes."""
    match config:
        case IcePopConfig():
            return functools.partial(icepop_loss, config=config)
        case DoubleSidedConfig():
            return functools.partial(double_sided_loss, config=config)
        case PpoClipConfig():
            return functools.partial(ppo_clip_loss, config=config)
        case TisConfig():
            return functools.partial(truncated_loss, config=config)
        case GspoConfig():
            return functools.partial(gspo_loss, config=config)
        case CispoConfig():
            return functools.partial(cispo_loss, config=config)


@torch.no_grad()
def _shared_marks(logprobs_N: Tensor, streams: Streams) -> dict[str, Tensor]:
    old_N = streams.old(logprobs_N)
    ratio_N = streams.ratio(logprobs_N, old_N)
    marks = {
        "sampled_entropy_nats": -logprobs_N,
        "rho_mean": streams.ratio(old_N, streams.rollout_logprobs_N),
        # Schulman's low-variance estimate of KL(old || new): never negative.
        "policy_kl_nats": ratio_N - 1 - ratio_N.log(),
    }
    if streams.teacher_logprobs_N is not None:
        marks["teacher_kl_nats"] = logprobs_N - streams.teacher_logprobs_N
    return marks
