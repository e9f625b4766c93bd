"""Configs of the optimizer and of everything that changes over a run's tokens.

Defaults are GLM-5's where its report states them, else GLM-4.5's (arXiv 2508.06471, section 2.4).
Assumptions of ours, stated by neither: the AdamW constants, the length of the learning rate's
warm-up, and the fractions of a run at which the MTP weight and the router bias rate change (GLM-4.5
does both at 15T of 23T tokens, 0.65).
"""

from typing import Literal

import pydantic

from fivefold.config import Config, Runtime
from fivefold.errors import ConfigError


class OptimizerConfig(Config):
    """Muon for matrices, AdamW for the rest, one learning rate for both."""

    matrices: Literal["muon", "adamw"] = "muon"
    """Who updates matrices; `adamw`: one rule for all, cheaper where batches are small."""
    momentum: float = pydantic.Field(default=0.95, ge=0, lt=1)
    """Decay of Muon's gradient average, 0 to 1."""
    nesterov: bool = True
    """Orthogonalise the average mixed with the current gradient instead of the average."""
    ns: Literal["polar_express", "glm45"] = "polar_express"
    """Newton-Schulz polynomials: Polar Express, or GLM-4.5's constant ones."""
    ns_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the Newton-Schulz products; `auto`: bfloat16 where the device has it."""
    update_scale: Literal["match_rms", "keller"] = "match_rms"
    """Factor on a block of M x N: update_rms x sqrt(max(M, N)), or sqrt(max(1, M / N))."""
    update_rms: float = pydantic.Field(default=0.2, gt=0)
    """Root mean square of a Muon update before the learning rate, as AdamW's typically is."""
    weight_decay: float = pydantic.Field(default=0.1, ge=0)
    """Decoupled decay per unit of learning rate; norms and biases have none."""
    adam_beta1: float = pydantic.Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's gradient average, 0 to 1."""
    adam_beta2: float = pydantic.Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's squared gradient average, 0 to 1."""
    adam_eps: float = pydantic.Field(default=1e-8, gt=0)
    """Added to the root of AdamW's squared gradient average."""
    muon_split: bool = True
    """Orthogonalise each head alone; False: queries, keys and values as one matrix each."""
    split_rope: bool = False
    """Orthogonalise a head's rotary query rows apart from its other rows."""
    muon_lm_head: bool = False
    """Give the output head to Muon, as GLM-4.5's wording has it, instead of AdamW."""
    muon_router: bool = True
    """Give the routers to Muon instead of AdamW."""
    batch_bytes: Runtime[int] = pydantic.Field(default=2**24, gt=0)
    """Most bytes of blocks in one Newton-Schulz batch; accelerators like it large, caches small."""


class ScheduleConfig(Config):
    """Learning rate, batch size, MTP weight and router bias rate as functions of tokens seen."""

    total_tokens: int = pydantic.Field(gt=0)
    """Tokens at which the stage ends; fractions below refer to it."""
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up; `constant` stays at the peak."""
    peak_lr: float = pydantic.Field(default=2e-4, ge=0)
    """Learning rate at the end of warm-up."""
    final_lr: float = pydantic.Field(default=4e-5, ge=0)
    """Learning rate at the end of the stage (cosine and linear)."""
    warmup_fraction: float = pydantic.Field(default=0.01, ge=0, le=1)
    """Share of the tokens over which the learning rate rises linearly from 0 to the peak."""
    batch_rows: int = pydantic.Field(default=32, gt=0)
    """Rows (packed sequences) of a step after warm-up, over all ranks."""
    batch_rows_start: int = pydantic.Field(default=8, gt=0)
    """Rows of the first step; GLM-4.5 starts at a quarter of the full batch."""
    batch_warmup_fraction: float = pydantic.Field(default=0.025, ge=0, le=1)
    """Share of the tokens over which the batch grows (GLM-4.5: 0.5T of 23T tokens)."""
    mtp_weight: float = pydantic.Field(default=0.3, ge=0)
    """Weight of the MTP losses' mean over depths, before the switch."""
    mtp_weight_late: float = pydantic.Field(default=0.1, ge=0)
    """The same after the switch."""
    mtp_switch_fraction: float = pydantic.Field(default=0.65, ge=0, le=1)
    """Share of the tokens at which the MTP weight changes."""
    router_bias_rate: float = pydantic.Field(default=0.001, ge=0)
    """Change of a router bias a step, before the stop."""
    router_bias_stop_fraction: float = pydantic.Field(default=0.65, ge=0, le=1)
    """Share of the tokens after which router biases stay as they are."""

    @pydantic.model_validator(mode="after")
    def _check_order(self) -> "ScheduleConfig":
        if self.batch_rows_start > self.batch_rows:
            raise ConfigError(
                expected="`batch_rows_start` to be at most `batch_rows`",
                found=f"{self.batch_rows_start} > {self.batch_rows}",
                fix="Lower `batch_rows_start`, or set both to the same value for a constant batch",
            )
        return self
