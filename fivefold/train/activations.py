"""What becomes of each layer's activations: as named, or chosen under a bound for what is there.

The planner says what a layer keeps on this rank of a mesh and how long it takes
(`plan.rank_activations`, `plan.chain`), the knapsack over the rank's order which of keeping, moving
and computing again is cheapest under the bound (`plan.activation_order`): the order of one pass
through the model, or of a whole step of a pipeline. Microbatches of another size, as in a context
curriculum, or another number of them in a step, are chosen for anew. Where the host's link is not
known nothing moves; on a CPU that would save nothing.

Surprise: how many rows come to a rank's experts is known only when they come. The planner reckons
with more than an even share; where that was too little the bound is broken, which a warning says
with its figures, and from the next microbatch or step on it reckons with more. Ranks that exchange
within a layer agree on what they reckon with, so that all compute the same layers again.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fivefold.models.surroundings import WHOLE_MASK_TOKENS, IndexerMode, Surroundings
from fivefold.models.transformer import Transformer
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.config import DATA_AXES, ParallelConfig
from fivefold.parallel.context.attention import ContextSurroundings
from fivefold.parallel.mesh import Group, Mesh, single
from fivefold.parallel.offload import Offloader, blocks_by_layer
from fivefold.parallel.pipeline.blank import BlankMicrobatch
from fivefold.plan.activation_choice import ActivationBoundError, ActivationChoice, LayerCost
from fivefold.plan.activation_order import RankOrder, choose_in_order, pass_order
from fivefold.plan.chain import model_pieces
from fivefold.plan.config import Precision, TrainingRun
from fivefold.plan.hardware import HARDWARE, Hardware
from fivefold.plan.layout import Layout
from fivefold.plan.rank_activations import (
    RankBytes,
    RankTokens,
    deferred_bytes,
    input_bytes,
    kept_bytes,
    places_bytes,
    staying_bytes,
)
from fivefold.plan.unit import format_bytes
from fivefold.train.staged_loss import StagedBatch

logger = logging.getLogger(__name__)

_EXPERT_MARGIN = 1.5
"""Rows that a rank of `ep` reckons with, as a multiple of an even share."""
_LEAST_GROWTH = 1.1
"""Least factor by which it reckons with more after a bound was broken."""


StepBatches = Sequence[StagedBatch | BlankMicrobatch]
"""All microbatches of this rank's step in a pipeline."""


@dataclass(frozen=True)
class Load:
    """The most that a microbatch of a pass or a step asks of this rank."""

    own: int
    """Tokens of its residual stream."""
    keys: int
    """Tokens whose keys it may see."""
    row: int
    """Tokens of a whole row."""
    indexer: IndexerMode
    """What the indexers do."""
    has_mask: bool
    """Does attention run under a mask?"""
    gathers: bool
    """Does it gather selected keys?"""


class ActivationBound:
    """Sets the treatment of a model's layers so that this rank holds no more than a bound."""

    def __init__(
        self,
        model: Transformer,
        dtype: torch.dtype,
        offloader: Offloader,
        bound_bytes: int,
        mesh: Mesh | None = None,
    ) -> None:
        """Let `offloader` ask before each pass, or each step of a pipeline, computed in `dtype`.

        All ranks of `mesh` make this together; None: one process.
        """
        self._model, self._dtype, self._offloader = model, dtype, offloader
        self._bound_bytes = bound_bytes
        self._config = ParallelConfig() if mesh is None else mesh.config
        self._group = single() if mesh is None else agreeing_group(mesh)
        self._blocks = blocks_by_layer(model)
        stack = model.config.num_hidden_layers
        depths = 0 if model.mtp is None else model.config.fivefold.mtp_depths
        self._order = pass_order([*range(stack), *[stack] * depths])
        self._received: Collection[int] = ()
        self._step: StepBatches = ()
        self._defers = False
        self.choices: dict[tuple[Load, int, float], ActivationChoice] = {}
        """By load, events of the order and the margin for experts' rows."""
        self._margin, self._told_bytes = _EXPERT_MARGIN, bound_bytes
        offloader.prepare = self.prepare

    def follow(
        self, order: RankOrder, received: Collection[int], step: StepBatches, *, defers: bool
    ) -> None:
        """Begin a step in a pipeline; what goes into the layers `received` other stages have sent.

        `defers` says whether weight gradients are put off.
        """
        self._order, self._received, self._step, self._defers = order, received, step, defers

    def prepare(self, x_BTD: Tensor, around: Surroundings) -> None:
        """Choose for what enters the rank's first block, and set its layers' treatment.

        Raises:
            ActivationBoundError: no treatment was found that keeps the bound.
        """
        self._check_peak()
        topk = self._model.config.index_topk if self._model.config.has_indexer else None
        load = self._agreed(load_of(x_BTD, around, self._config.tp, topk, self._step))
        key = load, len(self._order.events), self._margin
        if key not in self.choices:
            self.choices[key] = self._choose(load, x_BTD, key)
        choice, layers = self.choices[key], dict.fromkeys(self._order.layers)
        treated = dict(zip(layers, choice.treatments, strict=True))
        for layer, treatment in treated.items():
            self._blocks[layer].recompute = treatment.recompute
        moving = [layer for layer, treatment in treated.items() if treatment.move]
        self._offloader.move(moving, choice.window)

    def _choose(self, load: Load, x_BTD: Tensor, key: tuple[Load, int, float]) -> ActivationChoice:
        hardware = find_hardware_of(x_BTD.device)
        costs = layer_costs(
            self._model,
            dict.fromkeys(self._order.layers),
            load,
            self._config,
            hardware or HARDWARE["h100"],
            sizes=(self._dtype.itemsize, x_BTD.element_size()),
            expert_margin=self._margin,
            received=self._received,
            defers=self._defers,
        )
        try:
            choice = choose_in_order(
                costs,
                self._order,
                self._bound_bytes,
                host_bandwidth=None if hardware is None else hardware.host_bandwidth,
                deferred_limit_bytes=self._config.deferred_bytes,
            )
        except ActivationBoundError:
            before = [self.choices[one] for one in self.choices if one[:2] == key[:2]]
            if not before:
                raise
            # Rows that came once need not come again: training goes on, and what is held is told.
            logger.warning("no treatment keeps `activation_bytes` with as many rows: it stays")
            return before[-1]
        logger.info(
            "%s of %d tokens on this rank: layers %s, at most %s of activations",
            f"{len(self._step)} microbatches" if self._step else "a microbatch",
            load.own,
            choice.summary(),
            format_bytes(choice.held_bytes),
        )
        return choice

    def _check_peak(self) -> None:
        """Say that more was held than the bound; reckon with more rows of experts from here on."""
        peak = self._offloader.ledger.peak_bytes
        if peak <= self._told_bytes:
            return
        self._told_bytes = peak
        remedy = "lower it by as much to stay below"
        if self._config.ep > 1:
            self._margin *= max(peak / self._bound_bytes, _LEAST_GROWTH)
            remedy = "most likely more rows came to its experts than it reckoned with; it does now"
        logger.warning(
            "layers on this rank held %s of activations, above the %s of `activation_bytes`: %s",
            format_bytes(peak),
            format_bytes(self._bound_bytes),
            remedy,
        )

    def _agreed(self, load: Load) -> Load:
        """Return the most of what the ranks that exchange within a layer reckon with."""
        if self._group.size == 1:
            return load
        masks = load.has_mask, load.gathers
        numbers = load.own, load.keys, load.row, *masks, round(1000 * self._margin)
        device = self._model.speeds_R.device
        most = all_reduce(torch.tensor(numbers, device=device), self._group, "max").tolist()
        self._margin = most[-1] / 1000
        own, keys, row, has_mask, gathers, _ = most
        return Load(own, keys, row, load.indexer, bool(has_mask), bool(gathers))


def agreeing_group(mesh: Mesh) -> Group:
    """Return the ranks that exchange within a layer and may have other tokens than each other.

    Ranks of `cp` and `tp` alone know of each other's tokens what matters here.
    """
    if mesh.config.ep == 1:
        return single()
    rows = DATA_AXES if mesh.config.experts_cross_rows else ()
    return mesh.group(*rows, "cp", "tp")


def load_of(
    x_BTD: Tensor, around: Surroundings, tensor: int, topk: int | None, step: StepBatches = ()
) -> Load:
    """Return what a pass asks of a rank into whose first block `x_BTD` goes, or all of a `step`.

    `tensor` ranks share the tokens; `topk` keys are selected, None: all. What depends on the
    documents of other microbatches of the step is taken to be the most that it can be.
    """
    owns = [x_BTD.shape[0] * x_BTD.shape[1]]
    keys = [owns[0] * tensor]
    staged = [batch for batch in step if isinstance(batch, StagedBatch)]
    shards = [batch.shard for batch in staged if batch.shard is not None]
    shards += [around.shard] if isinstance(around, ContextSurroundings) else []
    if shards:
        owns = [shard.padded_tokens // tensor for shard in shards]
        keys = [shard.rows * shard.tokens for shard in shards]
    else:
        owns += [batch.ids_BT.numel() // tensor for batch in staged]
        keys += [batch.ids_BT.numel() for batch in staged]
    narrows = topk is not None and (around.keys > topk if step else around.narrows(topk))
    gathers = topk is not None and narrows and not around.is_dense and around.gathers(topk)
    packed = any(batch.documents_BT is not None for batch in staged)
    has_mask = packed and (bool(shards) or around.queries <= WHOLE_MASK_TOKENS)
    if not gathers:
        # Else the microbatches of a step whose documents are short are dense all the same.
        has_mask |= bool(shards) or around.visible_BTS is not None
        has_mask |= narrows and not around.is_dense
    return Load(max(owns), max(keys), around.queries, around.indexer, has_mask, gathers)


def layer_costs(
    model: Transformer,
    layers: Collection[int],
    load: Load,
    mesh: ParallelConfig,
    hardware: Hardware,
    *,
    sizes: tuple[int, int],
    expert_margin: float = _EXPERT_MARGIN,
    received: Collection[int] = (),
    defers: bool = False,
) -> dict[int, LayerCost]:
    """Return what each of a rank's layers keeps and takes for a microbatch.

    Bytes are bounds: `sizes` are those of a number and of one of the residual stream, an expert's
    rows are padded, and experts on different ranks get `expert_margin` times an even share of the
    rows. Where a pipeline `defers` weight gradients, what they want is counted; what goes into the
    layers `received` another stage has sent.
    """
    config = model.config
    narrow, wide = sizes
    tokens = _rank_tokens(model, load, mesh, expert_margin)
    learns = load.indexer not in ("frozen", "probe")
    size = RankBytes(
        narrow,
        wide,
        max(narrow, 4),
        has_mask=load.has_mask,
        gathers=load.gathers,
        learns=learns,
        learn_alone=load.indexer == "warm_up",
    )
    run = TrainingRun(
        total_tokens=1,
        context_tokens=load.row,
        stage="sparse" if load.indexer == "sparse" else "dense",
    )
    layout = Layout(gpus=mesh.size // mesh.pp, context=mesh.cp, tensor=mesh.tp, expert=mesh.ep)
    pieces = model_pieces(config, run, layout, hardware, Precision(activation_bytes=narrow))
    rows, costs = load.keys / load.row, {}
    for layer in layers:
        depths = config.fivefold.mtp_depths if layer == config.num_hidden_layers else 1
        piece = pieces[1 + layer]
        # What another stage has sent is held until the backward, for its gradient.
        state = config.hidden_size * tokens.own * wide * (layer in received)
        kept = kept_bytes(config, layer, tokens, size) + state * size.learn_alone
        costs[layer] = LayerCost(
            kept_bytes=kept,
            input_bytes=input_bytes(config, tokens, size),
            forward=rows * piece.forward / depths,
            backward=rows * (piece.input_gradient + piece.weight_gradient) / depths,
            runs=depths,
            staying_bytes=min(state + staying_bytes(config, layer, tokens, size), kept),
            staying_input_bytes=state + places_bytes(config, tokens, size),
            deferred_bytes=defers * deferred_bytes(config, layer, tokens, size),
        )
    return costs


def find_hardware_of(device: torch.device) -> Hardware | None:
    """Return the planner's hardware of this name, None for a CPU or a GPU that it does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((hardware for key, hardware in HARDWARE.items() if key in name), None)


def _rank_tokens(
    model: Transformer, load: Load, mesh: ParallelConfig, expert_margin: float
) -> RankTokens:
    """Return the tokens of a rank, the rows of its experts as a bound."""
    config = model.config
    own_experts = config.n_routed_experts // mesh.ep
    chosen = float(config.num_experts_per_tok)
    if mesh.ep > 1:
        chosen = min(expert_margin * chosen, mesh.ep * min(chosen, own_experts))
    routed = load.own * chosen
    if model.speeds_R.device.type == "cpu":
        # `ops.product.common_rows`: to a multiple of 32 or of a sixteenth, never to twice as many.
        routed += min(32 * own_experts + routed / 16, routed)
    return RankTokens(
        own=load.own,
        sequence=load.own * mesh.tp,
        keys=load.keys,
        row=load.row,
        routed=routed,
        tensor=mesh.tp,
        head_context=mesh.cp if mesh.cp_form == "heads" else 1,
        expert=mesh.ep,
        crosses=mesh.cp > 1,
    )
