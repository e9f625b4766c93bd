"""Multi-token prediction: one layer, unrolled `mtp_depths` times with the same parameters.

Depth k reads the hidden state of depth k - 1 and the embedding of the token k places ahead, and
predicts the one after it. Sharing the parameters over depths makes the draft model one layer in
memory and lets drafting several tokens match training. Sources: DeepSeek-V3 report, section 2.2;
GLM-5 report, section 2.1.3.

Surprises: in `eh_proj` the embedding comes first, then the hidden state; what is handed to the next
depth is the state AFTER `shared_head.norm` (recycling the state before it costs accept length and
fails silently). Embedding table and output head are the main model's and receive its gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fivefold.models.config import ModelConfig
from fivefold.models.layer import Linear, RMSNorm
from fivefold.models.moe import Routing
from fivefold.models.surroundings import Surroundings
from fivefold.ops.index_loss import IndexLoss


class MtpOutput(NamedTuple):
    """Result of one depth."""

    state_BTD: Tensor
    """Normalised state, projected by the output head and handed to the next depth."""
    routing: Routing | None
    """What the layer's router decided."""
    index_loss: IndexLoss | None
    """What the layer's indexer has to learn."""


class MtpLayer(nn.Module):
    """The MTP layer around its own transformer block."""

    def __init__(self, config: ModelConfig, block: nn.Module) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.block = block
        self.shared_head_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_BTD: Tensor, ahead_BTD: Tensor, around: Surroundings) -> MtpOutput:
        """Go one depth further.

        Args:
            hidden_BTD: normalised state of the main stack (depth 1) or of the depth before.
            ahead_BTD: embedding of the token `depth` places ahead of each position.
            around: rotations and visibility, those of the main stack: positions are relative.
        """
        joined_BTX = torch.cat([self.enorm(ahead_BTD), self.hnorm(hidden_BTD)], dim=-1)
        # The residual stream is as wide as the embedding, as in the main stack.
        x_BTD = self.eh_proj(joined_BTX).to(ahead_BTD.dtype)
        out_BTD, _, routing, index_loss = self.block(x_BTD, around)
        return MtpOutput(self.shared_head_norm(out_BTD), routing, index_loss)
