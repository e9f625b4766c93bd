"""Choosing what becomes of each layer's activations, for the microbatch that is there.

The planner says what a layer keeps and how long it takes (`plan.chain`), the knapsack which of
keeping, moving and computing again is cheapest under the bound (`plan.activation_choice`). A
microbatch of another size, as in a context curriculum, is chosen for anew. Where the host's link is
not known nothing moves; on a CPU that would save nothing.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.models.surroundings import Surroundings
from fivefold.models.transformer import Transformer
from fivefold.parallel.offload import Offloader, blocks_by_layer
from fivefold.plan.activation_choice import LayerCost, choose_treatments
from fivefold.plan.chain import model_pieces
from fivefold.plan.config import Precision, TrainingRun
from fivefold.plan.hardware import HARDWARE, Hardware
from fivefold.plan.layout import Layout
from fivefold.plan.memory import layer_activation_bytes
from fivefold.plan.unit import format_bytes

logger = logging.getLogger(__name__)


def choose_for(
    model: Transformer, offloader: Offloader, bound_bytes: int
) -> Callable[[Tensor, Surroundings], None]:
    """Return what the offloader calls before a pass: it sets the layers' treatment.

    The call raises ActivationBoundError where no treatment keeps the bound.
    """
    blocks, known = blocks_by_layer(model), {}

    def prepare(x_BTD: Tensor, around: Surroundings) -> None:
        masked = around.visible_BTS is not None
        selects = around.narrows(model.config.index_topk)
        key = x_BTD.shape[0], x_BTD.shape[1], around.indexer, masked, selects
        if key not in known:
            hardware = find_hardware_of(x_BTD.device)
            costs = layer_costs(model, x_BTD, around, hardware or HARDWARE["h100"])
            link = None if hardware is None else hardware.host_bandwidth
            known[key] = choose_treatments(costs, bound_bytes, host_bandwidth=link)
            logger.info(
                "a microbatch of %d x %d tokens: layers %s, at most %s",
                *key[:2],
                known[key].summary(),
                format_bytes(known[key].held_bytes),
            )
        choice = known[key]
        for (_, block), treatment in zip(blocks.items(), choice.treatments, strict=True):
            block.recompute = treatment.recompute
        moving = [layer for layer, each in zip(blocks, choice.treatments, strict=True) if each.move]
        offloader.move(moving, choice.window)

    return prepare


def layer_costs(
    model: Transformer, x_BTD: Tensor, around: Surroundings, hardware: Hardware
) -> list[LayerCost]:
    """Return what each layer keeps and takes for the rows that enter the first one.

    Bytes are bounds: the residual stream has its own width, an expert's rows are padded.
    """
    config = model.config
    rows, tokens, width = x_BTD.shape
    narrow, wide = model.lm_head.weight.element_size(), x_BTD.element_size()
    precision = Precision(activation_bytes=narrow)
    sparse = around.indexer == "sparse"
    run = TrainingRun(total_tokens=1, context_tokens=tokens, stage="sparse" if sparse else "dense")
    pieces = model_pieces(config, run, Layout(gpus=1), hardware, precision)
    places = _places_bytes(model, around)
    costs = []
    for layer in blocks_by_layer(model):
        depths = config.fivefold.mtp_depths if layer == config.num_hidden_layers else 1
        piece = pieces[1 + layer]
        a_token = layer_activation_bytes(config, layer, precision, sparse=sparse)
        a_token += 2 * (wide - narrow) * width + places + _mask_bytes(model, around, narrow)
        kept = rows * tokens * a_token + _padding_bytes(model, layer, rows * tokens, narrow)
        backward = piece.input_gradient + piece.weight_gradient
        costs.append(
            LayerCost(
                kept_bytes=kept,
                input_bytes=rows * tokens * (width * wide + places),
                forward=rows * piece.forward / depths,
                backward=rows * backward / depths,
                runs=depths,
            )
        )
    return costs


def find_hardware_of(device: torch.device) -> Hardware | None:
    """Return the planner's hardware of this name, None for a CPU or a GPU that it does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((hardware for key, hardware in HARDWARE.items() if key in name), None)


def _places_bytes(model: Transformer, around: Surroundings) -> int:
    """Return what a token's selected keys take as int32 places."""
    topk = model.config.index_topk
    selects = model.config.has_indexer and not around.is_dense and around.narrows(topk)
    return 4 * min(topk, around.keys) if selects and around.gathers(topk) else 0


def _mask_bytes(model: Transformer, around: Surroundings, size: int) -> int:
    """Return what attention under a mask keeps for a token beside what it keeps without one.

    That is the mask as a number for each key, and each block's output once more
    (`ops.masked_attention`).
    """
    config = model.config
    selects = config.has_indexer and not around.is_dense and around.narrows(config.index_topk)
    if around.visible_BTS is None and not selects:
        return 0
    return size * (around.keys + config.num_attention_heads * config.v_head_dim)


def _padding_bytes(model: Transformer, layer: int, tokens: int, size: int) -> float:
    """Return the most that padding the rows of each expert adds (`ops.product.common_rows`)."""
    config = model.config
    if not config.is_moe(layer):
        return 0.0
    rows = 32 * config.n_routed_experts + tokens * config.num_experts_per_tok / 16
    return rows * ((config.hidden_size + 3 * config.moe_intermediate_size + 1) * size + 8)
