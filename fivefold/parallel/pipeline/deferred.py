"""Products with weights whose backward pass leaves the weight gradient to a store.

`defer_weight_gradients` puts them in the place of the forward of every `Linear` and of what runs
the experts of every `MoE`, the seams that `models` has for it; what ranks that share the experts
exchange stays in the backward pass. Everything else with a weight (norms, router, up-projection of
keys, embedding, head) finishes there itself. Values and gradients have the bits of the plain forms:
the same products of the same shapes.
"""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fivefold.models.layer import Linear
from fivefold.models.moe import Dispatcher, MoE
from fivefold.ops import experts
from fivefold.ops.product import common_rows, linear, product
from fivefold.parallel.expert import ExpertDispatcher
from fivefold.parallel.pipeline.weight_store import Deferred, WeightGradientStore
from fivefold.parallel.tensor_attention import PartialLinear


def defer_weight_gradients(module: nn.Module, store: WeightGradientStore) -> None:
    """Let the linear layers and experts of `module` leave their weight gradients to `store`."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.forward = functools.partial(deferred_linear, part, store)
        elif isinstance(part, MoE) and _running(part.dispatch) is experts.run_experts:
            run = functools.partial(deferred_experts, store=store)
            part.dispatch = _run_by(part.dispatch, run)


def finish_at_once(module: nn.Module) -> None:
    """Undo `defer_weight_gradients`."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.__dict__.pop("forward", None)
        elif isinstance(part, MoE) and _is_deferred(_running(part.dispatch)):
            part.dispatch = _run_by(part.dispatch, experts.run_experts)


def _running(dispatch: Dispatcher) -> Dispatcher:
    """Return what runs a rank's experts."""
    return dispatch.run if isinstance(dispatch, ExpertDispatcher) else dispatch


def _run_by(dispatch: Dispatcher, run: Dispatcher) -> Dispatcher:
    """Return the dispatcher with something else to run a rank's experts."""
    return dataclasses.replace(dispatch, run=run) if isinstance(dispatch, ExpertDispatcher) else run


def _is_deferred(run: Dispatcher) -> bool:
    return isinstance(run, functools.partial) and run.func is deferred_experts


def deferred_linear(layer: Linear, store: WeightGradientStore, x: Tensor) -> Tensor:
    """Return x W^T + b; the gradients of W and b go to `store`."""
    bias = None if isinstance(layer, PartialLinear) and not layer.adds_bias else layer.bias
    if not (torch.is_grad_enabled() and layer.weight.requires_grad):
        return linear(x, layer.weight, bias)
    return _DeferredLinear.apply(x, layer.weight, bias, store)


def deferred_experts(
    x_TD: Tensor,
    chosen_TA: Tensor,
    weight_TA: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    *,
    store: WeightGradientStore,
) -> Tensor:
    """Compute `ops.experts.run_experts`; the gradients of both stacks go to `store`.

    The stacks are parameters, not views of them.
    """
    wanted = gate_up_EFD.requires_grad and down_EDF.requires_grad
    if not (torch.is_grad_enabled() and wanted):
        return experts.run_experts(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF)
    return _DeferredExperts.apply(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF, store)


class _DeferredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_YX: nn.Parameter,
        bias_Y: nn.Parameter | None,
        store: WeightGradientStore,
    ) -> Tensor:
        # The parameters are inputs so that a backward pass comes here even if x needs none.
        ctx.save_for_backward(x)
        ctx.parameters = (weight_YX,) if bias_Y is None else (weight_YX, bias_Y)
        ctx.store = store
        return linear(x, weight_YX, bias_Y)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad_MY = grads[0].reshape(-1, grads[0].shape[-1])
        compute = _linear_gradients if len(ctx.parameters) == 2 else _weight_gradient
        ctx.store.put(Deferred(ctx.parameters, compute, (x, grad_MY)))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(grad_MY, ctx.parameters[0].T).view_as(x)
        return grad_x, None, None, None


def _weight_gradient(x: Tensor, grad_MY: Tensor) -> tuple[Tensor]:
    """Return the gradient of W, over rows padded as the forward pass pads them."""
    x_MX = x.reshape(-1, x.shape[-1])
    extra = common_rows(len(x_MX)) - len(x_MX)
    if extra:
        x_MX, grad_MY = F.pad(x_MX, (0, 0, 0, extra)), F.pad(grad_MY, (0, 0, 0, extra))
    return (product(grad_MY.T, x_MX),)


def _linear_gradients(x: Tensor, grad_MY: Tensor) -> tuple[Tensor, Tensor]:
    return *_weight_gradient(x, grad_MY), grad_MY.sum(0)


class _DeferredExperts(torch.autograd.Function):
    """The experts' own backward pass, cut where the weight gradients begin."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        chosen_TA: Tensor,
        weight_TA: Tensor,
        gate_up_EFD: Tensor,
        down_EDF: Tensor,
        store: WeightGradientStore,
    ) -> Tensor:
        assert isinstance(gate_up_EFD, nn.Parameter), "a gradient is added to a parameter"
        assert isinstance(down_EDF, nn.Parameter), "a gradient is added to a parameter"
        out_TD, pairs, kept = experts.run_pairs(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF)
        ctx.save_for_backward(pairs.token_P, pairs.place_TA, *kept)
        ctx.parts, ctx.weight_dtype = pairs.parts, weight_TA.dtype
        ctx.parameters, ctx.store = (gate_up_EFD, down_EDF), store
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_TD,) = grads
        token_P, place_TA, x_PD, hidden_PF, act_PF, weight_P = ctx.saved_tensors
        gate_up_EFD, down_EDF = ctx.parameters
        width = down_EDF.shape[-1]
        weighted_PF = act_PF * weight_P[:, None]
        grad_PD = grad_TD.index_select(0, token_P)
        grad_weighted_PF = experts.grouped_product(grad_PD, down_EDF, ctx.parts)
        grad_weight_P = (grad_weighted_PF * act_PF).sum(-1, dtype=ctx.weight_dtype)
        grad_act_PF = grad_weighted_PF.mul_(weight_P[:, None])
        gate, up = hidden_PF[:, :width], hidden_PF[:, width:]
        grad_hidden_PF = torch.empty_like(hidden_PF)
        torch.mul(grad_act_PF, F.silu(gate), out=grad_hidden_PF[:, width:])
        grad_hidden_PF[:, :width] = torch.ops.aten.silu_backward(grad_act_PF.mul_(up), gate)
        grad_x_PD = experts.grouped_product(grad_hidden_PF, gate_up_EFD, ctx.parts)
        compute = functools.partial(_expert_gradients, ctx.parts, gate_up_EFD, down_EDF)
        kept = x_PD, grad_hidden_PF, weighted_PF, grad_PD
        ctx.store.put(Deferred((gate_up_EFD, down_EDF), compute, kept))
        grad_weight_TA = grad_weight_P[place_TA.flatten()].view_as(place_TA)
        return experts.gather_sum(grad_x_PD, place_TA), None, grad_weight_TA, None, None, None


def _expert_gradients(
    parts: list[tuple[int, slice]],
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    x_PD: Tensor,
    grad_hidden_PF: Tensor,
    weighted_PF: Tensor,
    grad_PD: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the gate-up and the down stack."""
    return (
        experts.weight_gradient(grad_hidden_PF, x_PD, gate_up_EFD, parts),
        experts.weight_gradient(grad_PD, weighted_PF, down_EDF, parts),
    )
