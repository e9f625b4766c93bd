"""What a plan is made for: number formats, recomputation and the training run.

These are the few choices beside the model's shape that decide bytes and FLOPs. Defaults are the
mixed precision that GLM-5-class models train in: bf16 weights, fp32 gradients, fp32 optimizer.
"""

from typing import Literal

import pydantic

from fivefold.config import Config

Recompute = Literal["none", "feed_forward", "full"]
"""Which activations are computed again in the backward pass: none, those inside the feed-forward
(and the norms before it), or everything but each layer's input."""

TrainingStage = Literal["dense", "warmup", "sparse"]
"""How attention trains: over all keys without indexer work, dense with every weight but the
indexer's frozen, or over the selected keys with the indexer learning beside the backbone."""


class Precision(Config):
    """Bytes a value, by purpose."""

    weight_bytes: float = pydantic.Field(default=2, gt=0)
    """Bytes of a weight that the forward pass reads (bf16: 2)."""

    gradient_bytes: float = pydantic.Field(default=4, gt=0)
    """Bytes of an accumulated gradient (fp32: 4, bf16: 2)."""

    master_bytes: float = pydantic.Field(default=4, ge=0)
    """Bytes of the optimizer's own copy of a weight; 0 updates the weight in place."""

    moment_bytes: float = pydantic.Field(default=4, gt=0)
    """Bytes of one optimizer moment: Muon keeps one a weight, AdamW two."""

    activation_bytes: float = pydantic.Field(default=2, gt=0)
    """Bytes of a saved activation (bf16: 2); router and softmax statistics stay fp32."""

    cache_bytes: float = pydantic.Field(default=2, gt=0)
    """Bytes of a cached latent or key value while decoding (bf16: 2, FP8: 1)."""


class TrainingRun(Config):
    """One gradient stage on paper."""

    total_tokens: int = pydantic.Field(gt=0)
    """Tokens that the stage consumes."""

    context_tokens: int = pydantic.Field(default=4096, gt=0)
    """Tokens of one packed row; documents are assumed to fill it."""

    batch_tokens: int | None = pydantic.Field(default=None, gt=0)
    """Tokens of one optimizer step, over all ranks; None leaves the number of steps open."""

    stage: TrainingStage = "dense"
    """How attention trains in this stage."""

    recompute: Recompute = "none"
    """Which activations the backward pass computes again."""
