"""From logits to tokens: pure functions of logits, settings and a counter.

The number that decides a draw is a hash of the request's seed, the token's position and the use it
is put to, so that a token depends neither on the other requests of a batch nor on when it ran. The
order is that of the large engines: bias, temperature, top-k, top-p, min-p, renormalise.
Log-probabilities come in two kinds: `sampled`, of the distribution drawn from, which is what
importance ratios in RL need, and `raw`, softmax of the unchanged logits.

Rows are independent: every function gives a row the same numbers alone and in a batch. Shapes: M
rows to sample, W vocabulary.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.serve.request import SamplingParams

_LEAST_TEMPERATURE = 1e-6
"""Lower ones, 0 aside, are taken as this, SGLang's bound too: a logit divided by less may overflow
fp32."""


class Draw(NamedTuple):
    """A position of one request to choose a token for."""

    params: SamplingParams
    seed: int
    position: int
    """Place in the sequence that the token will take."""


class Choice(NamedTuple):
    """Results of M rows."""

    token_M: Tensor
    """Chosen ids, int64."""
    sampled_M: Tensor
    """Log-probability under the distribution drawn from; 0 for greedy rows."""
    raw_M: Tensor
    """Log-probability under softmax of the unchanged logits."""
    top_ids: list[list[int]]
    """Alternatives a row, best first; empty where none are wanted."""
    top_raw: list[list[float]]


def uniform(seed: int, position: int, use: str) -> float:
    """Return a number in [0, 1) that only its arguments decide (53 bits of BLAKE2b)."""
    digest = hashlib.blake2b(f"{seed} {position} {use}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def is_plain(params: SamplingParams) -> bool:
    """Is the distribution drawn from the model's own?"""
    return (
        params.temperature == 1
        and not params.top_k
        and params.top_p == 1
        and not params.min_p
        and not params.logit_bias
    )


def log_distribution(logits_MW: Tensor, settings: Sequence[SamplingParams]) -> Tensor:
    """Return the log-probabilities that rows are drawn from, -inf where nothing is; fp32.

    A greedy row puts everything on its best token, the lowest id among equals.
    """
    logits_MW = logits_MW.float()
    if any(params.logit_bias for params in settings):
        logits_MW = _add_bias(logits_MW, settings)
    divisors = [
        max(params.temperature, _LEAST_TEMPERATURE) if params.temperature else 1.0
        for params in settings
    ]
    if any(divisor != 1 for divisor in divisors):
        logits_MW = logits_MW / logits_MW.new_tensor(divisors)[:, None]
    if any(params.top_k or params.top_p < 1 for params in settings):
        logits_MW = _truncate(logits_MW, settings)
    log_p_MW = logits_MW.log_softmax(-1)
    cut = [row for row, params in enumerate(settings) if params.min_p]
    if cut:
        # These rows alone: to normalise again what is normalised would move others' last bits.
        least_M1 = log_p_MW.new_tensor([[math.log(settings[row].min_p)] for row in cut])
        part_MW = log_p_MW[cut]
        floor_M1 = part_MW.amax(-1, keepdim=True) + least_M1
        log_p_MW = log_p_MW.clone()
        log_p_MW[cut] = part_MW.masked_fill(part_MW < floor_M1, -math.inf).log_softmax(-1)
    greedy = [row for row, params in enumerate(settings) if params.temperature == 0]
    if greedy:
        log_p_MW = log_p_MW.clone()
        best = log_p_MW[greedy].argmax(-1)
        log_p_MW[greedy] = -math.inf
        log_p_MW[greedy, best] = 0.0
    return log_p_MW


def invert(log_p_MW: Tensor, uniform_M: Tensor) -> Tensor:
    """Return the ids at which the cumulative distribution passes `uniform_M` (fp64 of M)."""
    p_MW = log_p_MW.double().exp()
    cumulative_MW = p_MW.cumsum(-1)
    target_M1 = uniform_M[:, None] * cumulative_MW[:, -1:]
    found_M = torch.searchsorted(cumulative_MW, target_M1, right=True)[:, 0]
    # Rounding may leave the target at the very end: the last id with any probability takes it.
    places = torch.arange(p_MW.shape[1], device=p_MW.device)
    last_M = torch.where(p_MW > 0, places, -1).amax(-1)
    return torch.minimum(found_M, last_M)


def choose(logits_MW: Tensor, draws: Sequence[Draw]) -> Choice:
    """Choose a token for each row."""
    settings = [draw.params for draw in draws]
    raw_MW = logits_MW.float().log_softmax(-1)
    if all(params.temperature == 0 and not params.logit_bias for params in settings):
        token_M = raw_MW.argmax(-1)
        sampled_M = torch.zeros(len(draws), device=token_M.device)
    else:
        plain = all(is_plain(params) for params in settings)
        log_p_MW = raw_MW if plain else log_distribution(logits_MW, settings)
        numbers = [uniform(draw.seed, draw.position, "token") for draw in draws]
        uniform_M = torch.tensor(numbers, dtype=torch.float64, device=log_p_MW.device)
        token_M = invert(log_p_MW, uniform_M)
        sampled_M = log_p_MW.gather(1, token_M[:, None])[:, 0]
    raw_M = raw_MW.gather(1, token_M[:, None])[:, 0]
    return Choice(token_M, sampled_M, raw_M, *top_of(raw_MW, settings))


def top_of(
    raw_MW: Tensor, settings: Sequence[SamplingParams]
) -> tuple[list[list[int]], list[list[float]]]:
    """Return ids and raw log-probabilities of the alternatives that each row wants."""
    most = max((params.top_logprobs for params in settings), default=0)
    if not most:
        return [[] for _ in settings], [[] for _ in settings]
    values, ids = raw_MW.topk(most, dim=-1)
    rows = list(zip(ids.tolist(), values.tolist(), settings, strict=True))
    return (
        [row[: params.top_logprobs] for row, _, params in rows],
        [row[: params.top_logprobs] for _, row, params in rows],
    )


def _add_bias(logits_MW: Tensor, settings: Sequence[SamplingParams]) -> Tensor:
    logits_MW = logits_MW.clone()
    for row, params in enumerate(settings):
        for token, by in params.logit_bias:
            logits_MW[row, token] += by
    return logits_MW


def _truncate(logits_MW: Tensor, settings: Sequence[SamplingParams]) -> Tensor:
    """Hide what top-k and top-p leave out; among equal logits the lower id is better."""
    words = logits_MW.shape[1]
    ordered_MW, order_MW = logits_MW.sort(dim=-1, descending=True, stable=True)
    ks = [min(params.top_k or words, words) for params in settings]
    k_M1 = torch.tensor(ks, device=logits_MW.device)[:, None]
    hidden_MW = torch.arange(words, device=logits_MW.device) >= k_M1
    p_MW = ordered_MW.masked_fill(hidden_MW, -math.inf).softmax(-1)
    top_p_M1 = p_MW.new_tensor([params.top_p for params in settings])[:, None]
    # A row with top_p = 1 keeps all, whatever its sum rounds to.
    hidden_MW |= ((p_MW.cumsum(-1) - p_MW) >= top_p_M1) & (top_p_M1 < 1)
    # One that fp32 rounds to 0 keeps the best all the same.
    hidden_MW[:, 0] = False
    ordered_MW = ordered_MW.masked_fill(hidden_MW, -math.inf)
    return torch.empty_like(logits_MW).scatter_(1, order_MW, ordered_MW)
