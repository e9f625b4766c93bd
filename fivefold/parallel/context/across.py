"""What a training step asks of context parallelism.

    context = ContextParallel(mesh, model)              once; all ranks alike
    around = context.surroundings(model, positions_BT, documents_BT)    a microbatch
    dealt = context.deal(model, positions_BT, documents_BT)     or, where it runs in stages, first
    around = context.surroundings(model, positions_BT, documents_BT, dealt=dealt)       a stage
    model(around.shard.take(ids_BT), around=around)     hidden states of this rank's tokens

Labels, and the tokens ahead that the MTP layer reads, are made from whole rows and taken
(`around.shard.take`) after that, so that they cross the borders of shards. Losses divide by counts
of the whole step; a rank's is that of its own labels, and losses and gradients of ranks add up.
"""

from typing import NamedTuple

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
from fivefold.parallel.context.heads import HeadContextAttention
from fivefold.parallel.context.pieces import DocumentPart, document_parts
from fivefold.parallel.context.shard import TokenShard, make_shard
from fivefold.parallel.context.two_phase import TwoPhase
from fivefold.parallel.context.work import token_work, visible_keys
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.sequence import check_row
from fivefold.parallel.tensor_attention import HeadParallelAttention
from fivefold.plan.config import TrainingStage

_STAGES: dict[IndexerMode, TrainingStage] = {
    "frozen": "dense",
    "warm_up": "warmup",
    "probe": "warmup",
    "sparse": "sparse",
}
_OVER_TOKENS: dict[type[LatentAttention], type[ContextAttention]] = {
    LatentAttention: ContextAttention,
    HeadParallelAttention: HeadContextAttention,
}
"""What attention becomes where ranks share the tokens."""


class Dealt(NamedTuple):
    """What takes long to find of a microbatch's surroundings and little to keep."""

    shard: TokenShard
    """This rank's tokens."""
    parts: list[DocumentPart]
    """Their documents."""


class ContextParallel:
    """Context parallelism of one model along `cp`."""

    def __init__(self, mesh: Mesh, model: Transformer) -> None:
        """Let the attention of `model` see the keys of all ranks; other uses of it stay as before.

        All ranks of `mesh` make this in the same order. The parameters of `model`, the one that
        runs, stay where and what they are; heads are cut before tokens.

        Raises:
            ConfigError: heads or nodes that do not divide; attention that another axis has changed.
        """
        self.group = mesh.group("cp")
        config = mesh.config
        self.tensor_ranks = config.tp
        self.order: Order = config.cp_order
        self.form: Form = config.cp_form
        self.exchange = swap_flat(self.group)
        ranks_per_node = config.ranks_per_node
        if ranks_per_node is not None and ranks_per_node < self.group.size:
            self.exchange = TwoPhase(mesh, "cp", ranks_per_node)
        for module in model.modules():
            if isinstance(module, LatentAttention):
                check_attention(module, self.form, self.group.size)
                # As FSDP2 does: the class changes, parameters and names stay.
                module.__class__ = _OVER_TOKENS.get(type(module), type(module))

    def surroundings(
        self,
        model: Transformer,
        positions_BT: Tensor,
        documents_BT: Tensor | None,
        *,
        indexer: IndexerMode = "frozen",
        dealt: Dealt | None = None,
    ) -> ContextSurroundings:
        """Deal a microbatch's tokens, unless they are `dealt`; prepare what the layers share.

        Other arguments are those of `Transformer.surroundings`, of the WHOLE rows and alike on all
        ranks along `cp`; the result's `shard` is this rank's part.

        Raises:
            ConfigError: fewer tokens than ranks, or rows that tensor ranks do not divide.
        """
        if dealt is None:
            dealt = self.deal(model, positions_BT, documents_BT, indexer=indexer)
        positions_1N = dealt.shard.take(positions_BT)
        turn_BTR = rotary_angles(positions_1N, model.speeds_R, model.rotary_factor)
        tokens = positions_BT.shape[1]
        whole = make_surroundings(
            turn_BTR, documents_BT, None, queries=tokens, absorbed=False, indexer=indexer
        )
        return ContextSurroundings(**vars(whole), **dealt._asdict(), form=self.form)

    def deal(
        self,
        model: Transformer,
        positions_BT: Tensor,
        documents_BT: Tensor | None,
        *,
        indexer: IndexerMode = "frozen",
    ) -> Dealt:
        """Deal a microbatch's tokens; arguments and errors are those of `surroundings`."""
        rows, tokens = positions_BT.shape
        check_row(tokens, self.tensor_ranks)
        documents = np.zeros((rows, tokens), dtype=np.int8)
        if documents_BT is not None:
            documents = documents_BT.cpu().numpy()
        stage = _STAGES[indexer]
        if stage == "dense" and int(visible_keys(documents).max()) > model.config.index_topk:
            # Frozen indexers select.
            stage = "sparse"
        work = token_work(model.config, stage)
        assignment = assign(self.order, documents, self.group.size, work, self.tensor_ranks)
        shard = make_shard(assignment, rows, tokens, self.group, self.exchange, positions_BT.device)
        return Dealt(shard, document_parts(shard.runs, documents))


def check_attention(attention: LatentAttention, form: Form, ranks: int) -> None:
    """Refuse attention that cannot run over the tokens of `ranks`.

    Raises:
        ConfigError: another axis has changed it; heads that do not divide, where they travel.
    """
    if type(attention) not in (*_OVER_TOKENS, *_OVER_TOKENS.values()):
        raise ConfigError(
            expected="attention that no axis but `tp` has changed",
            found=type(attention).__name__,
            fix="Use `parallel.cp` without that axis",
        )
    if form == "heads" and attention.heads % ranks:
        raise ConfigError(
            expected=f"attention heads that divide among {ranks} ranks along `cp`",
            found=f"{attention.heads} heads",
            fix="Lower `parallel.cp`, or let latents travel instead of heads",
        )
