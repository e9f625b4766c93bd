"""What a training step asks of context parallelism.

    context = ContextParallel(mesh, model, "dense")     once; all ranks alike
    shard = context.shard(documents)                    a microbatch: this rank's tokens
    around = context.surroundings(model, shard, ...)    in place of `model.surroundings`
    model(shard.take(ids_BT), around=around)            hidden states of this rank's tokens

Labels, and the tokens ahead that the MTP layer reads, are made from whole rows and taken
(`shard.take`) after that, so that they cross the borders of shards. Losses divide by counts of the
whole step; a rank's is that of its own labels, and losses and gradients of ranks add up.
"""

import numpy as np
from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.models.mla import LatentAttention
from fivefold.models.surroundings import IndexerMode, make_surroundings
from fivefold.models.transformer import Transformer
from fivefold.ops.rotary import rotary_angles
from fivefold.parallel.context.assignment import Order, assign
from fivefold.parallel.context.attention import ContextAttention, ContextSurroundings, Form
from fivefold.parallel.context.exchange import swap_flat
from fivefold.parallel.context.pieces import document_parts
from fivefold.parallel.context.shard import TokenShard, make_shard
from fivefold.parallel.context.two_phase import TwoPhase
from fivefold.parallel.context.work import token_work
from fivefold.parallel.mesh import Mesh
from fivefold.plan.config import TrainingStage

_STAGES: dict[IndexerMode, TrainingStage] = {
    "frozen": "dense",
    "warm_up": "warmup",
    "probe": "warmup",
    "sparse": "sparse",
}


class ContextParallel:
    """Context parallelism of one model along `cp`."""

    def __init__(
        self,
        mesh: Mesh,
        model: Transformer,
        *,
        order: Order = "balanced",
        form: Form = "latents",
        ranks_per_node: int | None = None,
    ) -> None:
        """Let the attention of `model` see the keys of all ranks; other uses of it stay as before.

        Args:
            mesh: the ranks; all make this in the same order.
            model: the model that runs; its parameters stay where and what they are.
            order: how tokens are dealt to ranks.
            form: how attention runs.
            ranks_per_node: neighbours along `cp` that share a node, for an exchange of heads in two
                phases; None: in one.

        Raises:
            ConfigError: heads or nodes that do not divide.
        """
        self.group = mesh.group("cp")
        self.order: Order = order
        self.form: Form = form
        self.exchange = swap_flat(self.group)
        if ranks_per_node is not None:
            self.exchange = TwoPhase(mesh, "cp", ranks_per_node)
        for module in model.modules():
            if isinstance(module, LatentAttention):
                if form == "heads":
                    self._check_heads(module.heads)
                module.__class__ = ContextAttention

    def shard(
        self, model: Transformer, documents: np.ndarray, indexer: IndexerMode = "frozen"
    ) -> TokenShard:
        """Return this rank's tokens of a microbatch.

        `documents` holds the document of each input token, int [rows, tokens], alike on all ranks;
        `indexer` says what the tokens will cost.

        Raises:
            ConfigError: fewer tokens than ranks.
        """
        work = token_work(model.config, _STAGES[indexer])
        assignment = assign(self.order, documents, self.group.size, work)
        rows, tokens = documents.shape
        device = model.lm_head.weight.device
        return make_shard(assignment, rows, tokens, self.group, self.exchange, device)

    def surroundings(
        self,
        model: Transformer,
        shard: TokenShard,
        positions_BT: Tensor,
        documents_BT: Tensor | None,
        *,
        indexer: IndexerMode = "frozen",
    ) -> ContextSurroundings:
        """Prepare what the layers share, from the tensors of the WHOLE rows.

        Arguments are those of `Transformer.surroundings`.
        """
        positions_1N = shard.take(positions_BT)
        turn_BTR = rotary_angles(positions_1N, model.speeds_R, model.rotary_factor)
        whole = make_surroundings(
            turn_BTR,
            documents_BT,
            None,
            queries=shard.tokens,
            absorbed=False,
            indexer=indexer,
        )
        documents = np.zeros((shard.rows, shard.tokens), dtype=np.int8)
        if documents_BT is not None:
            documents = documents_BT.cpu().numpy()
        parts = document_parts(shard.runs, documents)
        return ContextSurroundings(**vars(whole), shard=shard, parts=parts, form=self.form)

    def _check_heads(self, heads: int) -> None:
        if heads % self.group.size:
            raise ConfigError(
                expected=f"attention heads that divide among {self.group.size} ranks along `cp`",
                found=f"{heads} heads",
                fix="Lower `parallel.cp`, or let latents travel instead of heads",
            )
