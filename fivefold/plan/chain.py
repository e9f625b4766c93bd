"""The model as a chain of pieces with times and sizes on one rank: what stages are cut from.

The pieces are the embedding, the layers, the MTP layer (once in weights, as often as it is
unrolled in time) and the output head. Times are of one microbatch of one row; the compute part is
FLOPs over assumed rates, communication that is not hidden is added.

The head's loss is computed in chunks with its backward pass at once, so all of its time is
forward time and nothing of it is left for the schedule to move.
"""

from dataclasses import dataclass

from fivefold.models.config import ModelConfig
from fivefold.plan.communication import (
    context_bytes,
    expert_seconds,
    link_seconds,
    tensor_bytes,
)
from fivefold.plan.config import Precision, Recompute, TrainingRun
from fivefold.plan.flops import (
    TokenFlops,
    head_flops,
    index_pair_flops,
    layer_flops,
    mean_selected_keys,
)
from fivefold.plan.hardware import Hardware
from fivefold.plan.layout import Layout
from fivefold.plan.memory import MTP_WIDTHS, layer_activation_bytes
from fivefold.plan.parameters import (
    attention_matrices,
    dense_matrices,
    expert_parameters,
    has_own_indexer,
    indexer_matrices,
    latent_matrices,
)
from fivefold.plan.piece import Piece


def model_pieces(
    config: ModelConfig,
    run: TrainingRun,
    layout: Layout,
    hardware: Hardware,
    precision: Precision,
) -> list[Piece]:
    """Return the chain from embedding to head under this layout."""
    maker = _PieceMaker(config, run, layout, hardware, precision)
    known: dict[tuple[bool, bool], Piece] = {}
    chain = [Piece("embedding", table=maker.table)]
    for layer in range(config.num_hidden_layers):
        kind = config.is_moe(layer), has_own_indexer(config, layer)
        if kind not in known:
            known[kind] = maker.layer(layer)
        chain.append(known[kind])
    depths = config.fivefold.mtp_depths * config.num_nextn_predict_layers
    if depths:
        chain.append(maker.mtp(depths))
    chain.append(maker.head(1 + depths))
    return chain


@dataclass(frozen=True)
class _PieceMaker:
    config: ModelConfig
    run: TrainingRun
    layout: Layout
    hardware: Hardware
    precision: Precision

    @property
    def tokens(self) -> float:
        """Tokens of a microbatch that one rank holds."""
        return self.run.context_tokens / self.layout.context

    @property
    def table(self) -> float:
        """Rows x width of embedding or head on one tensor rank."""
        return self.config.vocab_size * self.config.hidden_size / self.layout.tensor

    @property
    def _matmul_rate(self) -> float:
        """Rate of dense products, whose columns tensor ranks share."""
        return self.hardware.matmul_rate(
            min(self.tokens, self.config.hidden_size / self.layout.tensor)
        )

    @property
    def _expert_rate(self) -> float:
        """Rate of experts, which see the rows of all ranks they are shared by."""
        config, layout = self.config, self.layout
        rows = self.tokens / layout.tensor * config.num_experts_per_tok * layout.expert
        return self.hardware.expert_rate(rows / config.n_routed_experts)

    def layer(self, index: int) -> Piece:
        """Return the piece of one layer."""
        config = self.config
        sparse = self.run.stage == "sparse"
        flops = layer_flops(config, [index], self.run.context_tokens, sparse=sparse)
        dense = self._dense_seconds(flops)
        experts = self._split_seconds(flops.experts, self._expert_rate)
        feed_forward = self._split_seconds(flops.feed_forward, self._matmul_rate)
        core = self._split_seconds(flops.attention_core, self.hardware.attention_rate)
        scores = self._whole_seconds(flops.indexer_scores, self.hardware.attention_rate)
        learned = self._whole_seconds(self._learned_scores(index), self.hardware.attention_rate)
        indexer = self._whole_seconds(flops.indexer_projections, self._matmul_rate)
        exchange = self._exchange_seconds() if config.is_moe(index) else 0.0
        stream = self._stream_seconds()
        products = dense + feed_forward + experts
        forward = products + core + scores + indexer + exchange + stream
        again = {
            "none": 0.0,
            "feed_forward": feed_forward + experts + exchange,
            "full": forward,
        }
        return Piece(
            name=f"layer {index}",
            forward=forward,
            input_gradient=products
            + 2 * core
            + learned
            + exchange
            + stream
            + again[self.run.recompute],
            weight_gradient=products + indexer,
            activation_bytes=self._activations(index, self.run.recompute),
            dense=self._dense_parameters(index),
            experts=self._expert_parameters(index),
        )

    def mtp(self, depths: int) -> Piece:
        """Return the MTP layer, run `depths` times, with its copy of the embedding."""
        block = self.layer(self.config.num_hidden_layers)
        joined = 2 * self.config.hidden_size**2
        seconds = self._split_seconds(2 * joined, self._matmul_rate)
        again = seconds if self.run.recompute == "full" else 0.0
        width = self.config.hidden_size * self.precision.activation_bytes
        share = self.tokens / self.layout.tensor
        return Piece(
            name="mtp",
            forward=depths * (block.forward + seconds),
            input_gradient=depths * (block.input_gradient + seconds + again),
            weight_gradient=depths * (block.weight_gradient + seconds),
            activation_bytes=depths * (block.activation_bytes + MTP_WIDTHS * width * share),
            dense=block.dense + joined / self.layout.tensor,
            experts=block.experts,
            table=self.table,
            streams=depths,
        )

    def head(self, losses: int) -> Piece:
        """Return the output head with `losses` losses, forward and backward in one."""
        seconds = self._split_seconds(head_flops(self.config), self._matmul_rate)
        width = self.config.hidden_size * self.precision.activation_bytes
        return Piece(
            name="head",
            forward=3 * losses * seconds,
            activation_bytes=losses * width * self.tokens / self.layout.tensor,
            table=self.table,
        )

    def _split_seconds(self, flops_a_token: float, rate: float) -> float:
        """Return the time of work that tensor ranks share."""
        return self._whole_seconds(flops_a_token, rate) / self.layout.tensor

    def _whole_seconds(self, flops_a_token: float, rate: float) -> float:
        """Return the time of work that every tensor rank repeats."""
        return flops_a_token * self.tokens / rate

    def _dense_seconds(self, flops: TokenFlops) -> float:
        """Return the time of attention's projections and the router.

        Expanded attention over context ranks up-projects the gathered latents of the whole row.
        """
        config, rate = self.config, self._matmul_rate
        whole = 2 * latent_matrices(config) + flops.router
        split = flops.attention_projections - 2 * latent_matrices(config)
        if config.kv_lora_rank is not None and self.run.stage == "dense":
            up = config.qk_nope_head_dim + config.v_head_dim
            gathered = 2 * config.num_attention_heads * up * config.kv_lora_rank
            split += (self.layout.context - 1) * gathered
        return self._whole_seconds(whole, rate) + self._split_seconds(split, rate)

    def _learned_scores(self, index: int) -> float:
        """Count the FLOPs a token of the indexer's backward pass over the selected keys."""
        if self.run.stage != "sparse" or not has_own_indexer(self.config, index):
            return 0.0
        kept = mean_selected_keys(self.run.context_tokens, self.config.index_topk)
        return 2 * kept * index_pair_flops(self.config)

    def _exchange_seconds(self) -> float:
        """Return the exposed time of dispatch and combine."""
        tokens = self.tokens / self.layout.tensor
        seconds = expert_seconds(self.config, tokens, self.layout.expert, self.hardware)
        return (1 - self.hardware.hidden_dispatch) * seconds

    def _stream_seconds(self) -> float:
        """Return the time of the tensor and context collectives of one layer."""
        layout = self.layout
        tensor = tensor_bytes(self.config, self.tokens, layout.tensor)
        context = context_bytes(self.config, self.tokens, layout.context)
        group = layout.tensor * layout.context
        return link_seconds(tensor, layout.tensor, self.hardware) + link_seconds(
            context, group, self.hardware
        )

    def _activations(self, index: int, recompute: Recompute) -> float:
        """Return the bytes that one rank saves; tensor ranks share the sequence between them."""
        sparse = self.run.stage == "sparse"
        a_token = layer_activation_bytes(
            self.config, index, self.precision, recompute, sparse=sparse
        )
        return a_token * self.tokens / self.layout.tensor

    def _dense_parameters(self, index: int) -> float:
        """Count the weights of one layer on one tensor rank, experts aside."""
        config, tensor = self.config, self.layout.tensor
        whole = latent_matrices(config)
        whole += indexer_matrices(config) if has_own_indexer(config, index) else 0
        split = attention_matrices(config) - latent_matrices(config)
        if config.is_moe(index):
            whole += config.n_routed_experts * config.hidden_size
            split += config.n_shared_experts * expert_parameters(config)
        else:
            split += dense_matrices(config)
        return whole + split / tensor

    def _expert_parameters(self, index: int) -> float:
        if not self.config.is_moe(index):
            return 0.0
        return self.config.n_routed_experts * expert_parameters(self.config) / self.layout.expert
