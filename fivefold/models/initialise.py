"""Initial weights, in one table.

Matrices (the router included) are normal with deviation `initializer_range`, norm gains one, biases
zero, as in the released code; the report gives no table of its own. The generator makes the weights
a function of the seed alone.
"""

import math

import torch
from torch import nn

from fivefold.models.config import ModelConfig


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, generator: torch.Generator) -> None:
    """Fill every parameter in place; visits them in the order of definition."""
    scaled = config.initializer_range
    if config.fivefold.scaled_output_init:
        scaled /= math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 2)[-2:]
        if name.endswith(".bias"):
            parameter.zero_()
        elif "norm" in kind[0]:
            parameter.fill_(1.0)
        elif kind[0] in ("o_proj", "down_proj") or kind[-1] == "down":
            parameter.normal_(0.0, scaled, generator=generator)
        else:
            parameter.normal_(0.0, config.initializer_range, generator=generator)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):
            buffer.zero_()
