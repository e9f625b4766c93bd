"""Sampling from a model, one token at a time: the shortest correct loop.

Serves samples along training and the command line, and is the serving engine's oracle. Prefill runs
expanded, decode absorbed over the latent cache. Rows are equally long prompts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.models.cache import LatentCache
from fivefold.models.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the best token."""
    top_p: float = 1.0
    """Keep the smallest set of best tokens with at least this probability."""
    top_k: int = 0
    """Keep this many best tokens; 0 keeps all."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                expected="`temperature` >= 0, 0 < `top_p` <= 1 and `top_k` >= 0",
                found=f"{self.temperature}, {self.top_p} and {self.top_k}",
                fix="Correct the sampling settings",
            )


def choose(logits_BW: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """Draw one token a row from logits (B, W); returns int64 (B,)."""
    if sampling.temperature == 0:
        return logits_BW.argmax(-1)
    scaled_BW = logits_BW / sampling.temperature
    ordered, order = torch.sort(scaled_BW, dim=-1, descending=True, stable=True)
    p_BW = ordered.softmax(-1)
    before = p_BW.cumsum(-1) - p_BW
    p_BW = p_BW.masked_fill(before >= sampling.top_p, 0)
    if sampling.top_k:
        p_BW[:, sampling.top_k :] = 0
    drawn = torch.multinomial(p_BW, 1, generator=generator)
    return order.gather(1, drawn)[:, 0]


@torch.inference_mode()
def stream(
    model: Transformer,
    prompt_BT: Tensor,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every row, int64 (B,), `max_new_tokens` times.

    Raises:
        ConfigError: an empty prompt, or prompt and new tokens exceed the context.
    """
    rows, length = prompt_BT.shape
    if not length:
        raise ConfigError(expected="a prompt", found="no token", fix="Give at least one token")
    weight = model.lm_head.weight
    cache = LatentCache(
        model.config, rows, length + max_new_tokens, dtype=weight.dtype, device=weight.device
    )
    ids_BT = prompt_BT
    for _ in range(max_new_tokens):
        hidden_BTD = model(ids_BT, cache=cache).hidden_BTD
        next_B = choose(model.logits(hidden_BTD[:, -1]), sampling or Sampling(), generator)
        yield next_B
        ids_BT = next_B[:, None]


def generate(
    model: Transformer,
    prompt_BT: Tensor,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    stop_ids: tuple[int, ...] = (),
) -> list[list[int]]:
    """Return each row's continuation, up to and without its first stop token."""
    rows: list[list[int]] = [[] for _ in prompt_BT]
    running = set(range(len(rows)))
    for next_B in stream(model, prompt_BT, max_new_tokens, sampling, generator):
        for row, token in enumerate(next_B.tolist()):
            if row in running and token in stop_ids:
                running.discard(row)
            elif row in running:
                rows[row].append(token)
        if not running:
            break
    return rows
