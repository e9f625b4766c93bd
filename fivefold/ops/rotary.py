"""Rotary position embedding, in the two channel pairings that the GLM and DeepSeek families use.

GLM-5 rotates neighbouring channels (2i, 2i+1) in attention and indexer alike; DeepSeek-V3.2's
indexer rotates channel i with channel i + R/2. Dot products of rotated queries and keys do not
depend on where the rotated pairs are stored, and here they stay in place. Angles are fp32.
Sources: Su et al. 2021; YaRN: Peng et al. 2023, equations 17-22.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def inverse_frequencies(parameters: Mapping[str, Any], channels: int) -> tuple[Tensor, float]:
    """Return the angular speed of each channel pair and the factor on the rotated channels.

    `parameters` is `rope_parameters` of the config; speeds are fp32 of (channels / 2,), in radians
    a token. The factor is 1 except under `yarn`.
    """
    exponent = torch.arange(0, channels, 2, dtype=torch.float32) / channels
    speeds = 1.0 / (float(parameters["rope_theta"]) ** exponent)
    if parameters.get("rope_type", "default") == "default":
        return speeds, 1.0
    return _yarn(parameters, speeds, channels)


def _yarn(parameters: Mapping[str, Any], speeds: Tensor, channels: int) -> tuple[Tensor, float]:
    """Slow the pairs that turn less than `beta_slow` times, keep those beyond `beta_fast`."""
    factor = float(parameters["factor"])
    trained = float(parameters["original_max_position_embeddings"])
    base = float(parameters["rope_theta"])

    def pair_turning(times: float) -> float:
        return channels * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_turning(float(parameters.get("beta_fast") or 32))), 0)
    high = min(math.ceil(pair_turning(float(parameters.get("beta_slow") or 1))), channels - 1)
    ramp = (torch.arange(channels // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)
    slowed = ramp.clamp(0, 1)
    speeds = speeds / factor * slowed + speeds * (1 - slowed)
    if parameters.get("attention_factor") is not None:
        return speeds, float(parameters["attention_factor"])
    scale, scale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if scale and scale_all:
        return speeds, yarn_scale(factor, scale) / yarn_scale(factor, scale_all)
    return speeds, yarn_scale(factor)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """Return YaRN's magnitude correction for a context stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rotary_angles(positions_BT: Tensor, speeds_R: Tensor, factor: float = 1.0) -> Tensor:
    """Return the rotation of each position as complex64 of (B, T, R / 2)."""
    angles = positions_BT[..., None].float() * speeds_R
    return torch.polar(torch.full_like(angles, factor), angles)


def rotate_pairs(x_BTHR: Tensor, turn_BTR: Tensor) -> Tensor:
    """Rotate neighbouring channels of (B, T, H, R) by `rotary_angles`; keeps dtype and layout."""
    pairs = torch.view_as_complex(x_BTHR.to(_real(turn_BTR)).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn_BTR[:, :, None]).flatten(-2).to(x_BTHR.dtype)


def rotate_halves(x_BTHR: Tensor, turn_BTR: Tensor) -> Tensor:
    """Rotate channel i with channel i + R/2 of (B, T, H, R); keeps dtype and layout."""
    first, second = x_BTHR.to(_real(turn_BTR)).chunk(2, dim=-1)
    cos, sin = turn_BTR.real[:, :, None], turn_BTR.imag[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BTHR.dtype)


def _real(turn: Tensor) -> torch.dtype:
    return torch.float64 if turn.dtype == torch.complex128 else torch.float32
