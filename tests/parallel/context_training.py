"""Training steps of the tiny model whose tokens are shared along `cp`, against one process.

The losses are those of `train.losses` with each tensor of the batch taken by the shard.
"""

from dataclasses import dataclass

import torch
from test_zero import Trained
from tiny_training import Setting, copies, make_model, rows_of_step
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.models.moe import Routing
from fivefold.models.surroundings import IndexerMode
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import chunked_loss_and_logprobs
from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.context.across import ContextParallel
from fivefold.parallel.context.assignment import Order
from fivefold.parallel.context.attention import Form
from fivefold.parallel.context.shard import TokenShard
from fivefold.parallel.mesh import Mesh, World
from fivefold.train.balance import BalanceTracker
from fivefold.train.batch import label_counts, make_batch
from fivefold.train.losses import LossParts, Objective, index_share
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.schedule import learning_rate, mtp_weight, router_bias_rate
from fivefold.train.step import StepResult, clip_gradients, own_microbatches


@dataclass(frozen=True)
class Sharing:
    """How tokens are shared."""

    config: ParallelConfig
    order: Order = "balanced"
    form: Form = "latents"
    ranks_per_node: int | None = None

    def begin(self, mesh: Mesh, model: Transformer) -> ContextParallel:
        return ContextParallel(
            mesh, model, order=self.order, form=self.form, ranks_per_node=self.ranks_per_node
        )


def shared_objective(setting: Setting, context: ContextParallel) -> Objective:
    """Return the loss of this rank's tokens; losses of the ranks add up."""
    indexer: IndexerMode = "frozen" if setting.mode == "dense" else setting.mode
    config = setting.config

    def objective(model: Transformer, part: Rows, whole: Rows, tokens_before: int) -> LossParts:
        assert model.mtp is not None
        warms_up = setting.mode == "warm_up"
        depths = 1 if warms_up else model.config.fivefold.mtp_depths
        batch = make_batch(part, depths, "cpu", keeps_padding=indexer != "frozen")
        around = context.surroundings(
            model, batch.positions_BT, batch.documents_BT, indexer=indexer
        )
        shard = around.shard
        hidden, main_routing, index_losses = model(shard.take(batch.ids_BT), around=around)
        states, mtp_routing = [hidden], []
        for ahead_BT in batch.ahead_BT:
            embedded = model.embed_tokens(shard.take(ahead_BT))
            state, routing, index_loss = model.mtp(states[-1], embedded, around)
            states.append(state)
            index_losses += [] if index_loss is None else [index_loss]
            mtp_routing.append(routing)
        if warms_up:
            loss = index_share(index_losses, whole)
            return LossParts(loss, {"index_kl_nats": loss.detach()}, [], [])
        denominators = torch.tensor(label_counts(whole, depths))
        scale = torch.tensor([1.0] + [mtp_weight(tokens_before, config) / depths] * depths)
        tokens = hidden.shape[1]
        loss, logprobs = chunked_loss_and_logprobs(
            torch.cat([state[0] for state in states]),
            model.lm_head.weight,
            torch.cat([shard.take(labels)[0] for labels in batch.labels_BT]),
            (scale / denominators).repeat_interleave(tokens),
            chunk_tokens=config.loss_chunk_tokens,
        )
        nats = -logprobs.view(depths + 1, tokens).sum(1) / denominators
        measured = {"loss_nats": nats[0]}
        measured |= {f"mtp{depth}_loss_nats": nats[depth] for depth in range(1, depths + 1)}
        routed = main_routing + mtp_routing
        mean = torch.stack([shared_balance_loss(r, shard) for r in routed]).mean()
        balance = mean * (shard.rows / len(whole.ids))
        loss = loss + config.balance_loss_weight * balance
        measured["balance_loss"] = balance.detach()
        if index_losses:
            index = index_share(index_losses, whole)
            loss = loss + index
            measured["index_kl_nats"] = index.detach()
        return LossParts(loss, measured, main_routing, mtp_routing)

    return objective


def shared_balance_loss(routing: Routing, shard: TokenShard) -> Tensor:
    """Return this rank's share of `train.balance.sequence_balance_loss`: f is of whole rows."""
    experts = routing.scores_TE.shape[1]
    share_TE = routing.scores_TE / routing.scores_TE.sum(-1, keepdim=True)
    mean_BE = shard.row_sums(share_TE) / shard.tokens
    chosen_TA = routing.chosen_TA
    ones = torch.ones_like(chosen_TA, dtype=share_TE.dtype)
    chosen_TE = torch.zeros_like(share_TE).scatter_add_(1, chosen_TA, ones)
    counts_BE = shard.add_up_(shard.row_sums(chosen_TE.detach()))
    frequency_BE = counts_BE * (experts / (chosen_TA.shape[1] * shard.tokens))
    return (frequency_BE * mean_BE).sum(-1).mean()


def train_shared(world: World, setting: Setting, sharing: Sharing, steps: int) -> Trained:
    """Take steps on a mesh with a `cp` axis; every rank holds and updates all weights."""
    mesh = Mesh(sharing.config, world)
    model = make_model(setting)
    optimizer = HybridOptimizer(model.named_parameters(), model.config, setting.config.optimizer)
    tracker = BalanceTracker(model)
    objective = shared_objective(setting, sharing.begin(mesh, model))
    everyone = mesh.group("dp", "fsdp", "cp")
    results = []
    for step in range(steps):
        mesh.ledger.reset()
        rows, before, config = rows_of_step(step), 1000 * step, setting.config
        measured: dict[str, Tensor] = {}
        for part in own_microbatches(rows, setting.microbatch_rows, mesh.data):
            assert part is not None
            losses = objective(model, part, rows, before)
            losses.total.backward()
            tracker.add(losses.main_routing, losses.mtp_routing)
            for name, share in losses.measured.items():
                measured[name] = measured.get(name, torch.zeros(())) + share
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                all_reduce(parameter.grad, everyone)
        norms = clip_gradients(optimizer.parameter_groups, config.clip_norm)
        optimizer.step(learning_rate(before + rows.ids[:, 1:].size, config))
        optimizer.zero_grad()
        for count in tracker.counts:
            all_reduce(count, everyone)
        counts = tracker.update(router_bias_rate(before, config))
        shown = {n: all_reduce(value.double(), everyone).item() for n, value in measured.items()}
        results.append(StepResult(shown, norms, 0.0, False, counts))
    sent = {f"{op} {where}": t.sent_bytes for (op, where), t in mesh.ledger.totals.items()}
    return Trained(results, copies(model.state_dict()), copies(optimizer.state_dict()), sent)
