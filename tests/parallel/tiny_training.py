"""A tiny model of every feature, rows for it, and whole training steps, in one process or many.

Hidden 64, three layers (one dense), MTP unrolled twice, 8 experts, an indexer. `fp64` takes out
the difference that a different order of sums makes; Newton-Schulz runs in the same dtype.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from test_batch import make_rows
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.models.config import FivefoldFields
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.surroundings import IndexerMode
from fivefold.models.transformer import Transformer
from fivefold.train.config import GradientConfig
from fivefold.train.losses import Objective, language_objective, warm_up_objective
from fivefold.train.optimizer_config import OptimizerConfig

Mode = Literal["dense", "warm_up", "sparse"]
"""Pre-training; the indexers alone; everything on selected keys."""
INDEXER: dict[Mode, IndexerMode] = {"dense": "frozen", "warm_up": "warm_up", "sparse": "sparse"}

TINY = preset(
    "nano",
    vocab_size=99,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    n_routed_experts=8,
    num_experts_per_tok=2,
    q_lora_rank=32,
    kv_lora_rank=16,
    index_topk=1024,
    max_position_embeddings=1024,
    fivefold=FivefoldFields(mtp_depths=2),
)
TOKENS = 16
"""Tokens that a row predicts."""
ROWS = make_rows([[12, 5], [17], [3, 4, 5], [16], [9, 8], [17], [1, 15], [6, 6, 5]], TOKENS + 1)


@dataclass(frozen=True)
class Setting:
    """One training of the tiny model."""

    mode: Mode = "dense"
    dtype: str = "float64"
    microbatch_rows: int = 2
    """Rows of a microbatch in one process; a data-parallel rank may take fewer."""
    clip_norm: float = 0.5
    """Gradients are several times longer."""
    compute_dtype: str | None = None
    """Of forward and backward; None: `dtype`."""
    recompute: bool | tuple[int, ...] = False
    """Where a mesh spreads the training."""
    offload: bool | tuple[int, ...] = False
    """As `recompute`."""
    activation_bytes: int | None = None
    """As `recompute`."""

    @property
    def config(self) -> GradientConfig:
        optimizer = OptimizerConfig().model_copy(update={"ns_dtype": self.dtype})
        return GradientConfig(
            total_tokens=100_000,
            peak_lr=5e-3,
            warmup_fraction=0.0,
            batch_rows=len(ROWS.ids),
            batch_rows_start=len(ROWS.ids),
            microbatch_rows=self.microbatch_rows,
            loss_chunk_tokens=16,
            balance_loss_weight=0.01,
            clip_norm=self.clip_norm,
        ).model_copy(
            update={
                "optimizer": optimizer,
                "compute_dtype": self.compute_dtype or self.dtype,
                "recompute": self.recompute,
                "offload": self.offload,
                "activation_bytes": self.activation_bytes,
            }
        )

    @property
    def objective(self) -> Objective:
        if self.mode == "warm_up":
            return warm_up_objective
        return language_objective(self.config, "sparse" if self.mode == "sparse" else "frozen")


def make_model(setting: Setting) -> Transformer:
    """Build the same model on every rank, its parameters frozen as the mode wants."""
    topk = 4 if setting.mode == "sparse" else TINY.index_topk
    shape = TINY.model_copy(update={"index_topk": topk, "initializer_range": 0.08})
    model = Transformer(shape)
    generator = torch.Generator().manual_seed(1)
    initialise(model, shape, generator)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.05, generator=generator)
    for name, parameter in model.named_parameters():
        is_indexer = ".indexer." in name
        parameter.requires_grad_(
            {"dense": not is_indexer, "warm_up": is_indexer}.get(setting.mode, True)
        )
    return model.to(getattr(torch, setting.dtype)).train()


def rows_of_step(step: int) -> Rows:
    """Return the global batch of a step: the same rows with other tokens."""
    ids = (ROWS.ids + 7 * step) % 96 + 3
    return Rows(ids, ROWS.document, ROWS.positions, ROWS.source)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest difference relative to its tensor's largest value, and where it is."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    return max(
        (float((found[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)), name)
        for name, value in wanted.items()
    )
