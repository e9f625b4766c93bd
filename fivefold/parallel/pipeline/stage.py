"""The modules of one stage and its forward pass.

A stage takes its modules from a model by reference, under the model's own names, so that a
checkpoint knows nothing of stages; where two stages of one rank need the embedding they hold one
module. The model may be one rank's part of a model that tensor or expert ranks share: between
stages a tensor rank sends and receives its own part of the tokens.
"""

import torch
from torch import Tensor, nn

from fivefold.models.indexer import Selection
from fivefold.models.transformer import Transformer
from fivefold.parallel.mesh import single
from fivefold.parallel.pipeline.program import (
    Message,
    Microbatch,
    Seen,
    StageObjective,
    StageResult,
)
from fivefold.parallel.pipeline.split import StagePart
from fivefold.parallel.sequence import TensorAxis


class ModelStage(nn.Module):
    """Some pieces of a Transformer."""

    def __init__(
        self,
        model: Transformer,
        part: StagePart,
        objective: StageObjective,
        axis: TensorAxis | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take the pieces of `part` out of `model`; `axis` are the tensor ranks that share it.

        `dtype` is that of what follows the final norm, None: its gain's.
        """
        super().__init__()
        self.part, self.objective = part, objective
        self.axis = axis or TensorAxis(single())
        self.width = model.config.hidden_size
        self.routers_below = sum(map(model.config.is_moe, range(part.layers.start)))
        normed = dtype or model.norm.weight.dtype
        self.received_dtype = normed if part.is_normed else model.embed_tokens.weight.dtype
        self.embed_tokens = model.embed_tokens if part.reads_embedding else None
        # Beside the module, which may stand below another stage's root (`parallel.fsdp`).
        self.look_up = None if self.embed_tokens is None else self.embed_tokens.__call__
        self.layers = nn.ModuleDict({str(layer): model.layers[layer] for layer in part.layers})
        self.norm = model.norm if part.has_norm else None
        self.mtp = model.mtp if part.mtp_depths else None
        self.lm_head = model.lm_head if part.has_head else None
        self.head_loss = model.head_loss

    def messages(self, microbatch: Microbatch) -> list[Message]:
        """Return the states that reach a stage that is not the first, each (B, T / tp, D)."""
        rows, tokens = microbatch.ids_BT.shape
        shape = torch.Size([rows, tokens // self.axis.size, self.width])
        drafts = len(microbatch.ahead_BT) if self.part.follows_mtp else 0
        return [Message(shape, self.received_dtype)] * (1 + drafts)

    def forward(self, microbatch: Microbatch, states: tuple[Tensor, ...]) -> StageResult:
        """Run the pieces on what the stage before has sent: the main state, then one a depth."""
        around = microbatch.surround()
        seen = Seen(self.routers_below)
        if self.part.embeds:
            assert self.look_up is not None, "the first stage holds the embedding"
            states = (self.look_up(microbatch.ids_BT),)
        elif self.part.is_normed:
            # What follows the final norm reads whole rows.
            states = tuple(self.axis.gather(state) for state in states)
        hidden_BTD, *drafts = states
        selection: Selection | None = None
        for block in self.layers.values():
            hidden_BTD, selection, routing, index_loss = block(hidden_BTD, around, selection)
            seen.main_routing += [] if routing is None else [routing]
            seen.index_losses += [] if index_loss is None else [index_loss]
        if self.norm is not None:
            hidden_BTD = self.norm(hidden_BTD)
        states = (hidden_BTD, *drafts)
        if self.mtp is not None:
            assert self.look_up is not None, "the MTP layer has an embedding beside it"
            for ahead_BT in microbatch.ahead_BT:
                draft = self.mtp(states[-1], self.look_up(ahead_BT), around)
                states = (*states, draft.state_BTD)
                seen.mtp_routing += [] if draft.routing is None else [draft.routing]
                seen.index_losses += [] if draft.index_loss is None else [draft.index_loss]
        losses = [self.objective.auxiliary(seen, microbatch)]
        if self.lm_head is not None:
            head = self.lm_head.weight, microbatch, self.head_loss
            losses.append(self.objective.head(states, *head))
            states = ()
        elif self.norm is not None or self.part.is_normed:
            states = tuple(self.axis.own(state) for state in states)
        return StageResult(states, tuple(loss for loss in losses if loss is not None))
