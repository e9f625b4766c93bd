"""The feed-forward of one layer in an engine's step, by the number of its tokens.

One token: a few matrix-vector products, no sorting. A few tokens, and few experts: all of them in
two large products, where those that a token did not choose count as zero (unless one overflows
fp32). Otherwise the model's own dispatch. Shapes: T tokens, E experts, A chosen ones, F hidden
units of an expert.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.models.layer import GatedMlp
from fivefold.models.moe import MoE
from fivefold.ops.experts import run_experts
from fivefold.ops.product import Packed

_FEW_TOKENS = 64
"""Tokens up to which running all experts is cheaper than sorting tokens by expert..."""
_IDLE_EXPERTS = 8
"""...if no more than so many experts stand behind each chosen one."""


class _GateUp(NamedTuple):
    """A gated feed-forward with its two input projections in one; gate rows first."""

    gate_up_XD: Packed
    down_DF: Packed

    def activate(self, x_TD: Tensor) -> Tensor:
        """Return silu(gate) x up."""
        gate, up = self.gate_up_XD.linear(x_TD).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.down_DF.linear(self.activate(x_TD))


class FusedFeed:
    """A dense feed-forward, or routed experts with the shared one.

    Copies of weights stand beside views of them, and the number of tokens decides which are read:
    after any update, in place or not, the object must be made again before it is called.
    """

    def __init__(self, mlp: GatedMlp | MoE) -> None:
        """Arrange its weights."""
        self._moe = mlp if isinstance(mlp, MoE) else None
        dense = mlp if isinstance(mlp, GatedMlp) else mlp.shared_experts
        self._dense = None if dense is None else _fuse(dense)
        self._experts: list[tuple[Tensor, Tensor]] = []
        self._all_experts: _GateUp | None = None
        if isinstance(mlp, MoE):
            gate_up_EFD, down_EDF = mlp.experts.gate_up.detach(), mlp.experts.down.detach()
            self._experts = list(zip(gate_up_EFD, down_EDF, strict=True))
            is_fast = gate_up_EFD.is_cpu and gate_up_EFD.dtype == torch.float32
            if is_fast and mlp.gate.experts <= _IDLE_EXPERTS * mlp.gate.chosen:
                self._all_experts = _fuse_experts(mlp)

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output (T, D) and the chosen experts (T, A), None for a dense layer."""
        if self._moe is None:
            assert self._dense is not None, "a layer without experts is dense"
            return self._dense(x_TD), None
        weight_TA, routing = self._moe.gate(x_TD)
        chosen_TA = routing.chosen_TA
        is_own = self._moe.dispatch is run_experts
        if len(x_TD) == 1 and is_own and x_TD.dtype == torch.float32:
            out_TD = self._run_one(x_TD[0], chosen_TA[0].tolist(), weight_TA)
        elif self._all_experts is not None and is_own and len(x_TD) <= _FEW_TOKENS:
            weight_TE = torch.zeros_like(routing.scores_TE).scatter_(1, chosen_TA, weight_TA)
            return self._run_all(self._all_experts, x_TD, weight_TE), chosen_TA
        else:
            experts = self._moe.experts
            out_TD = self._moe.dispatch(x_TD, chosen_TA, weight_TA, experts.gate_up, experts.down)
        return out_TD if self._dense is None else out_TD + self._dense(x_TD), chosen_TA

    def _run_one(self, x_D: Tensor, chosen: list[int], weight_1A: Tensor) -> Tensor:
        hidden_AX = torch.stack([torch.mv(self._experts[expert][0], x_D) for expert in chosen])
        gate, up = hidden_AX.chunk(2, dim=-1)
        acts = F.silu(gate).mul_(up).mul_(weight_1A.T).unbind(0)
        out_D = torch.mv(self._experts[chosen[0]][1], acts[0])
        for expert, act_F in zip(chosen[1:], acts[1:], strict=True):
            out_D = torch.addmv(out_D, self._experts[expert][1], act_F)
        return out_D[None]

    def _run_all(self, fused: _GateUp, x_TD: Tensor, weight_TE: Tensor) -> Tensor:
        act_TX = fused.activate(x_TD)
        experts = weight_TE.shape[1]
        routed = experts * self._experts[0][1].shape[1]
        act_TX[:, :routed].unflatten(1, (experts, -1)).mul_(weight_TE[..., None])
        return fused.down_DF.linear(act_TX)


@torch.no_grad()
def _fuse(mlp: GatedMlp) -> _GateUp:
    gate_up_XD = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return _GateUp(Packed(gate_up_XD), Packed(mlp.down_proj.weight))


@torch.no_grad()
def _fuse_experts(moe: MoE) -> _GateUp:
    """Put all routed experts, and the shared one after them, into one feed-forward."""
    gates, ups = (half.flatten(0, 1) for half in moe.experts.gate_up.chunk(2, dim=1))
    downs = moe.experts.down.transpose(0, 1).flatten(1)
    shared = moe.shared_experts
    if shared is not None:
        gates = torch.cat([gates, shared.gate_proj.weight])
        ups = torch.cat([ups, shared.up_proj.weight])
        downs = torch.cat([downs, shared.down_proj.weight], 1)
    return _GateUp(Packed(torch.cat([gates, ups])), Packed(downs.contiguous()))
