"""What changes over a run, as pure functions of the tokens seen.

Tokens, not steps: the batch grows during a run, and a resumed or resized run must continue on the
same curve. `tokens` counts from the start of the stage. Give the learning rate the count that
includes the step's own batch, so that the first step of a warm-up moves and the last step of a
stage runs at the final rate; the others describe a step that begins at `tokens`.

Sources: GLM-5 report (warm-up, cosine to 4e-5, then linear in mid-training), GLM-4.5 report 2.4
(batch warm-up, MTP weight, router bias rate).
"""

import math

from fivefold.errors import ConfigError
from fivefold.train.optimizer_config import ScheduleConfig


def learning_rate(tokens: int, config: ScheduleConfig) -> float:
    """Return the learning rate: linear from 0 to the peak, then the configured shape."""
    warmup_tokens = config.warmup_fraction * config.total_tokens
    if tokens < warmup_tokens:
        return config.peak_lr * tokens / warmup_tokens
    if config.kind == "constant":
        return config.peak_lr
    rest_tokens = config.total_tokens - warmup_tokens
    done = min((tokens - warmup_tokens) / rest_tokens, 1.0) if rest_tokens > 0 else 1.0
    share = 1 - done if config.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.final_lr + (config.peak_lr - config.final_lr) * share


def batch_rows(tokens: int, config: ScheduleConfig, microbatch_rows: int = 1) -> int:
    """Return the rows of the step that begins at `tokens`, a multiple of `microbatch_rows`.

    Grows linearly in tokens and is rounded down, but never below one multiple. `microbatch_rows`
    are the rows that all ranks process at a time (data-parallel ranks x microbatch).

    Raises:
        ConfigError: the full batch is not a multiple of `microbatch_rows`.
    """
    if config.batch_rows % microbatch_rows:
        raise ConfigError(
            expected=f"`batch_rows` to be a multiple of the {microbatch_rows} rows at a time",
            found=str(config.batch_rows),
            fix="Choose a multiple, or a smaller microbatch",
        )
    warmup_tokens = config.batch_warmup_fraction * config.total_tokens
    if tokens >= warmup_tokens:
        return config.batch_rows
    growth = (config.batch_rows - config.batch_rows_start) * tokens / warmup_tokens
    multiples = int(config.batch_rows_start + growth) // microbatch_rows
    return max(multiples, 1) * microbatch_rows


def mtp_weight(tokens: int, config: ScheduleConfig) -> float:
    """Return the weight of the multi-token-prediction loss for the step that begins at `tokens`."""
    is_late = tokens >= config.mtp_switch_fraction * config.total_tokens
    return config.mtp_weight_late if is_late else config.mtp_weight


def router_bias_rate(tokens: int, config: ScheduleConfig) -> float:
    """Return how far a router bias moves after the step that begins at `tokens`; late: 0."""
    is_stopped = tokens >= config.router_bias_stop_fraction * config.total_tokens
    return 0.0 if is_stopped else config.router_bias_rate
