"""Bytes of training state on one rank, by what the data ranks share (ZeRO, arXiv 1910.02054).

Weights and gradients in half precision and `K` bytes of optimizer state a parameter give the
paper's table; GLM-5's pipeline form keeps gradient shards and two full buffers of one stage.

Surprise: two rolling buffers save nothing before a rank has three stages.
"""

from collections.abc import Sequence

from fivefold.plan.layout import Sharding


def zero_bytes(
    parameters: float,
    ranks: int,
    stage: int,
    *,
    weight_bytes: float = 2,
    gradient_bytes: float = 2,
    optimizer_bytes: float = 12,
) -> float:
    """Return the bytes a rank holds under ZeRO `stage` 0 to 3 over `ranks` data ranks."""
    shares = [1.0 if stage < limit else 1 / ranks for limit in (3, 2, 1)]
    sizes = (weight_bytes, gradient_bytes, optimizer_bytes)
    return parameters * sum(share * size for share, size in zip(shares, sizes, strict=True))


def stage_state_bytes(
    parameters: Sequence[float],
    ranks: int,
    sharding: Sharding,
    *,
    weight_bytes: float,
    gradient_bytes: float,
    optimizer_bytes: float,
) -> float:
    """Return the bytes that one pipeline rank holds for the stages with these parameter counts.

    With `weights` a gathered copy of the largest stage's weights stands beside the shards.
    """
    level = {"none": 0, "optimizer": 1, "gradients": 2, "rolling": 2, "weights": 3}[sharding]
    total = sum(parameters)
    held = zero_bytes(
        total,
        ranks,
        level,
        weight_bytes=weight_bytes,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=optimizer_bytes,
    )
    largest = max(parameters)
    if sharding == "rolling":
        held += min(2 * largest, total) * gradient_bytes
    if sharding == "weights":
        held += largest * weight_bytes
    return held
