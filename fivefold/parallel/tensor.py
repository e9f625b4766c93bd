"""One rank's part of a model: heads, feed-forward columns, vocabulary and experts are shared.

Applied from outside to the plain model, whose modules keep their names and their code: parameters
are cut, and hooks put the exchanges of `parallel.sequence` around the modules whose matrices come
in pairs, the first cut by rows (outputs), the second by columns (inputs). What is not cut is
replicated; its gradient on a rank is that of the rank's tokens or heads, and the sum over ranks is
the whole. Sources: Shoeybi et al. 2019 (Megatron-LM), section 3; Korthikanti et al. 2022.

Experts are not cut by tensor ranks: these are ranks of `ep` like others, each with its part of the
sequence. Between ranks of `tp` alone (`ep=1`) they are replicated.

A forward takes whole rows and gives whole hidden states; in between, embeddings and states are
(B, T / tp, D). The head's loss is `head_loss`, from this rank's rows of it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.models.layer import GatedMlp
from fivefold.models.mla import Attended, LatentAttention
from fivefold.models.moe import MoE, Routing
from fivefold.models.mtp import MtpLayer
from fivefold.models.transformer import Transformer
from fivefold.parallel.collectives import all_gather
from fivefold.parallel.config import ParallelConfig, rank_table
from fivefold.parallel.expert import ExpertDispatcher
from fivefold.parallel.expert_exchange import delivery
from fivefold.parallel.mesh import Group, Mesh
from fivefold.parallel.row_shard import RowShard
from fivefold.parallel.sequence import TensorAxis
from fivefold.parallel.tensor_attention import HeadParallelAttention, PartialLinear
from fivefold.parallel.vocabulary import VocabularyEmbedding, vocabulary_loss_and_logprobs

_BY_ROWS = ("q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
_BY_COLUMNS = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Cut:
    """The part of a parameter that a rank holds."""

    axis: str
    """`tp` or `ep`."""
    dim: int
    """Dim that is cut."""
    begin: int
    """First of its places that the rank holds."""
    end: int
    """Behind the last."""

    def of(self, whole: Tensor) -> Tensor:
        """Return the part as a view."""
        return whole.narrow(self.dim, self.begin, self.end - self.begin)


def cut_of(name: str, shape: tuple[int, ...], config: ParallelConfig, rank: int) -> Cut | None:
    """Return which part of the named parameter a rank of the world holds; None: all of it."""
    module, kind = name.split(".")[-2:]
    axis, dim = "tp", 0
    if module == "experts":
        axis = "ep"
    elif kind == "weight" and module in _BY_COLUMNS:
        dim = 1
    elif kind != "weight" or module not in _BY_ROWS:
        return None
    size = config.ep if axis == "ep" else config.tp
    if size == 1:
        return None
    ranks = next(table for table in rank_table(config, axis) if rank in table)
    rows = RowShard((shape[dim],), size, ranks.index(rank)).rows
    return Cut(axis, dim, rows.start, rows.stop)


def check_divides(model: ModelConfig, config: ParallelConfig) -> None:
    """Refuse ranks that cannot share heads, columns or experts evenly.

    Raises:
        ConfigError: there are such.
    """
    shared = model.moe_intermediate_size * model.n_shared_experts
    sizes = [
        ("tp", config.tp, "attention heads", model.num_attention_heads),
        ("tp", config.tp, "columns of the dense layers", model.intermediate_size),
        ("tp", config.tp, "columns of the shared expert", shared),
        ("ep", config.ep, "routed experts", model.n_routed_experts),
    ]
    for axis, ranks, what, count in sizes:
        if count % ranks:
            raise ConfigError(
                expected=f"`{axis}` to divide the model's {count} {what}",
                found=f"`{axis}={ranks}`",
                fix="Choose a divisor",
            )


class SplitModel:
    """A copy of a model cut over the `tp` and `ep` axes of a mesh.

    Where the mesh has neither, the model itself is its only part.
    """

    def __init__(
        self, model: Transformer, mesh: Mesh, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        """Cut a copy of `model`; `release` empties `model` itself, all but its buffers.

        `shapes` name the parameters that stand in `model`, None being all: those of other stages of
        a pipeline are empty and stay so.

        Raises:
            ConfigError: ranks that cannot share the model evenly.
        """
        check_divides(model.config, mesh.config)
        self.mesh = mesh
        self.shell = self.model = model
        self.axis = TensorAxis(mesh.group("tp"))
        if shapes is None:
            shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        self.shapes = shapes
        self.cuts = self.cuts_of_rank(mesh.rank)
        self.is_cut = mesh.config.tp > 1 or mesh.config.ep > 1
        if not self.is_cut:
            return
        self.model = copy.deepcopy(model)
        for name, cut in self.cuts.items():
            if cut is not None:
                parameter = self.model.get_parameter(name)
                parameter.data = cut.of(parameter.data).clone()
        self.model.register_state_dict_post_hook(_presenting_whole(self.cuts, self.shapes, mesh))
        if self.axis.size > 1:
            _share_tensors(self.model, self.axis)
        if mesh.config.ep > 1:
            way = delivery(mesh, mesh.config.ranks_per_node)
            moes = [module for module in self.model.modules() if isinstance(module, MoE)]
            for layer, moe in enumerate(moes):
                moe.dispatch = ExpertDispatcher(way, model.config.n_routed_experts, layer)

    def follow(self) -> None:
        """Take over what a phase changed in the plain model: its rotary speeds."""
        self.model.speeds_R = self.shell.speeds_R

    def cuts_of_rank(self, rank: int) -> dict[str, Cut | None]:
        """Return what a rank of the world holds of every parameter."""
        config = self.mesh.config
        return {name: cut_of(name, shape, config, rank) for name, shape in self.shapes.items()}

    @torch.no_grad()
    def materialise(self) -> None:
        """Fill the plain model with the whole weights; all ranks together."""
        groups = {axis: self.mesh.group(axis) for axis in ("tp", "ep")}
        for name, cut in self.cuts.items():
            whole = self.model.get_parameter(name).data
            if cut is not None:
                whole = _whole(whole, cut, self.shapes[name][cut.dim], groups[cut.axis])
            self.shell.get_parameter(name).data = whole
        saved = self.model.state_dict().keys()
        for name, buffer in self.model.named_buffers():
            if name in saved:
                self.shell.get_buffer(name).copy_(buffer)

    def release(self) -> None:
        """Empty the plain model, unless it is its own part."""
        if not self.is_cut:
            return
        for parameter in self.shell.parameters():
            parameter.data = parameter.data.new_empty(0)


def _presenting_whole(
    cuts: Mapping[str, Cut | None], shapes: Mapping[str, tuple[int, ...]], mesh: Mesh
) -> Callable[..., None]:
    """Return a hook: parts in a state dict appear as the wholes that the ranks hold together."""

    def present(_: nn.Module, state: dict[str, Any], prefix: str, __: dict[str, Any]) -> None:
        for name, cut in cuts.items():
            if cut is not None:
                shape = shapes[name]
                state[prefix + name] = DTensor.from_local(
                    state[prefix + name],
                    mesh.flat_device_mesh(mesh.group(cut.axis)),
                    [Shard(cut.dim)],
                    run_check=False,
                    shape=torch.Size(shape),
                    stride=torch.empty(shape, device="meta").stride(),
                )

    return present


def _share_tensors(model: Transformer, axis: TensorAxis) -> None:
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


def _whole(part: Tensor, cut: Cut, size: int, group: Group) -> Tensor:
    """Return the whole of a parameter that the group's ranks hold in runs."""
    run = -(-size // group.size)
    padded = part.new_zeros(*part.shape[: cut.dim], run, *part.shape[cut.dim + 1 :])
    padded.narrow(cut.dim, 0, part.shape[cut.dim]).copy_(part)
    parts = padded.new_empty(group.size, *padded.shape)
    work = all_gather(parts, padded.view(-1), group)
    if work is not None:
        work.wait()
    return torch.cat(list(parts), cut.dim).narrow(cut.dim, 0, size).contiguous()
