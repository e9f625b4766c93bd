"""Tiny random models for the tests of this folder."""

import torch
from torch import Tensor

from fivefold.models.config import ModelConfig
from fivefold.models.initialise import initialise
from fivefold.models.transformer import Transformer


def build(config: ModelConfig, *, deviation: float = 0.08) -> Transformer:
    """Make a model whose logits are of order 1 and whose router bias matters."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(1)
    initialise(model, config.model_copy(update={"initializer_range": deviation}), generator)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.05, generator=generator)
    return model.eval()


def ids_of(config: ModelConfig, rows: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (rows, tokens), generator=generator)
