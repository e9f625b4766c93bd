"""The exchanges of tensor ranks around the modules of a model whose matrices are cut.

Modules keep their names and their code: hooks gather a module's input and sum up its output, where
matrices come in pairs, the first cut by rows (outputs), the second by columns (inputs); a few
classes change as FSDP2 changes them. Source: Korthikanti et al. 2022.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fivefold.models.layer import GatedMlp
from fivefold.models.mla import Attended, LatentAttention
from fivefold.models.moe import MoE, Routing
from fivefold.models.mtp import MtpLayer
from fivefold.models.transformer import Transformer
from fivefold.parallel.row_shard import RowShard
from fivefold.parallel.sequence import TensorAxis
from fivefold.parallel.tensor_attention import HeadParallelAttention, PartialLinear
from fivefold.parallel.vocabulary import VocabularyEmbedding, vocabulary_loss_and_logprobs


def share_tensors(model: Transformer, axis: TensorAxis) -> None:
    """Make the modules of a cut model exchange what their parts need."""

    def gather(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return axis.gather(output)

    def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return axis.scatter_sum(output)

    for module in model.modules():
        if isinstance(module, LatentAttention):
            _share_heads(module, axis)
        elif isinstance(module, GatedMlp):
            module.register_forward_pre_hook(lambda _, args: (axis.gather(args[0]), *args[1:]))
            module.register_forward_hook(cut)
        elif isinstance(module, MoE):
            _share_routing(module, axis)
        elif isinstance(module, MtpLayer):
            module.register_forward_pre_hook(lambda _, args: (axis.own(args[0]), *args[1:]))
            module.shared_head_norm.register_forward_hook(gather)
    model.norm.register_forward_hook(gather)
    model.register_forward_pre_hook(lambda _, args: axis.check(args[0]))
    begin = RowShard((model.config.vocab_size,), axis.size, axis.group.rank).rows.start
    # As FSDP2 does: the class changes, parameters and names stay.
    model.embed_tokens.__class__ = VocabularyEmbedding
    assert isinstance(model.embed_tokens, VocabularyEmbedding)
    model.embed_tokens.axis, model.embed_tokens.begin = axis, begin
    model.head_loss = _HeadLoss(axis, begin)


@dataclass(frozen=True)
class _HeadLoss:
    """The vocabulary-parallel loss with its rows' place filled in."""

    axis: TensorAxis
    begin: int

    def __call__(self, *args: Any, chunk_tokens: int) -> tuple[Tensor, Tensor]:
        group = self.axis.group
        return vocabulary_loss_and_logprobs(
            *args, chunk_tokens=chunk_tokens, begin=self.begin, group=group
        )


def _share_heads(attention: LatentAttention, axis: TensorAxis) -> None:
    attention.heads //= axis.size
    attention.__class__ = HeadParallelAttention
    assert isinstance(attention, HeadParallelAttention)
    attention.axis = axis
    attention.o_proj.__class__ = PartialLinear
    assert isinstance(attention.o_proj, PartialLinear)
    attention.o_proj.adds_bias = axis.group.rank == 0

    def cut(_: nn.Module, __: Any, output: Attended) -> Attended:
        return output._replace(y_BTD=axis.scatter_sum(output.y_BTD))

    attention.register_forward_pre_hook(lambda _, args: (axis.gather(args[0]), *args[1:]))
    attention.register_forward_hook(cut)


def _share_routing(moe: MoE, axis: TensorAxis) -> None:
    """Route a rank's own tokens; tell what the whole rows were routed."""

    def replay_own(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BTD, *rest = args
        if not rest or rest[0] is None:
            return args
        forced_BTA = rest[0].unflatten(0, (len(x_BTD), -1))
        return x_BTD, axis.own(forced_BTA).flatten(0, 1)

    def tell_whole(
        _: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Routing]
    ) -> tuple[Tensor, Routing]:
        y_BTD, routing = output
        whole = [
            axis.gather_alike(own.unflatten(0, (len(y_BTD), -1))).flatten(0, 1) for own in routing
        ]
        return y_BTD, Routing(*whole)

    moe.register_forward_pre_hook(replay_own)
    moe.register_forward_hook(tell_whole)
