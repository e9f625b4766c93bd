"""One step of a tiny model, whole in one process and cut over the ranks of a pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from team import World
from test_batch import make_rows
from tiny_training import TINY
from torch import Tensor, nn

from fivefold.data.loader import Rows
from fivefold.models.initialise import initialise
from fivefold.models.surroundings import IndexerMode
from fivefold.models.transformer import Block, Transformer
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Group, Mesh
from fivefold.parallel.pipeline.deferred import defer_weight_gradients
from fivefold.parallel.pipeline.placement import Placement
from fivefold.parallel.pipeline.program import GradientKeeper
from fivefold.parallel.pipeline.runtime import PipelineRuntime
from fivefold.parallel.pipeline.shared import SharedParameters
from fivefold.parallel.pipeline.split import MtpPlacement, chain_length, cut_by_work, stage_parts
from fivefold.parallel.pipeline.stage import ModelStage
from fivefold.parallel.pipeline.weight_store import WeightGradientStore
from fivefold.plan.make_schedule import make_schedule
from fivefold.train.balance import BalanceTracker
from fivefold.train.config import GradientConfig
from fivefold.train.losses import language_loss, warm_up_objective
from fivefold.train.staged_loss import StagedBatch, StagedLanguageLoss

EMBEDDING = "embed_tokens.weight"
TOKENS = 16
ROWS = make_rows([[12, 5], [17], [3, 4, 5], [16], [9, 8], [17], [1, 15], [6, 6, 5]], TOKENS + 1)
CONFIG = GradientConfig(
    total_tokens=100_000, mtp_weight=0.3, balance_loss_weight=0.01, loss_chunk_tokens=16
)
ONE_BY_ONE = [ROWS.part(slice(row, row + 1)) for row in range(len(ROWS.ids))]


@dataclass(frozen=True)
class Case:
    """What to cut, and how."""

    schedule: str = "1f1b"
    ranks: int = 2
    chunks: int = 2
    layers: int = 3
    mtp: MtpPlacement = "before_last"
    indexer: IndexerMode = "frozen"
    dtype: torch.dtype = torch.float32
    limit_bytes: int | None = None
    recompute: bool = False

    def model(self) -> Transformer:
        topk = 4 if self.indexer == "sparse" else TINY.index_topk
        update = {
            "num_hidden_layers": self.layers,
            "index_topk": topk,
            "initializer_range": 0.08,
            "indexer_types": None,
        }
        config = type(TINY).model_validate({**TINY.model_dump(exclude_unset=False), **update})
        model = Transformer(config)
        generator = torch.Generator().manual_seed(1)
        initialise(model, config, generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.05, generator=generator)
        for name, parameter in model.named_parameters():
            is_indexer = ".indexer." in name
            wanted = {"frozen": not is_indexer, "warm_up": is_indexer}.get(self.indexer, True)
            parameter.requires_grad_(wanted)
        for module in model.modules():
            if isinstance(module, Block):
                module.recompute = self.recompute
        return model.to(self.dtype)


def whole_step(case: Case, parts: Sequence[Rows] = ONE_BY_ONE) -> tuple[list[Tensor], dict]:
    """Return each microbatch's loss and all gradients of one process."""
    model, whole = case.model(), ROWS
    losses = []
    for part in parts:
        if case.indexer == "warm_up":
            share = warm_up_objective(model, part, whole, 0)
        else:
            share = language_loss(
                model,
                part,
                whole,
                depths=TINY.fivefold.mtp_depths,
                mtp_weight=CONFIG.mtp_weight,
                balance_weight=CONFIG.balance_loss_weight,
                chunk_tokens=CONFIG.loss_chunk_tokens,
                indexer=case.indexer,
            )
        share.total.backward()
        losses.append(share.total.detach())
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@dataclass
class Piped:
    """A rank's part of the cut model, ready to step."""

    model: Transformer
    stages: dict[int, ModelStage]
    stores: dict[int, WeightGradientStore]
    shared: SharedParameters | None
    runtime: PipelineRuntime
    loss: StagedLanguageLoss
    keeper: GradientKeeper | None

    def batches(self, parts: Sequence[Rows]) -> list[StagedBatch]:
        return self.loss.batches(parts, self.model)

    def gradients(self) -> dict[str, Tensor]:
        return {
            name: parameter.grad
            for stage in self.stages.values()
            for name, parameter in stage.named_parameters()
            if parameter.grad is not None
        }


def cut_model(
    case: Case,
    group: Group,
    count: int = len(ONE_BY_ONE),
    keeper: Callable[[dict[int, ModelStage]], GradientKeeper] | None = None,
) -> Piped:
    """Cut the model and prepare the runtime of this rank for `count` microbatches."""
    schedule = make_schedule(case.schedule, case.ranks, count, chunks=case.chunks)
    model = case.model()
    cut = cut_by_work(model.config, [1.0] * chain_length(model.config), schedule.stages, case.mtp)
    parts = stage_parts(model.config, cut)
    loss = StagedLanguageLoss(model.config, CONFIG, case.indexer)
    loss.begin(ROWS, 0, BalanceTracker(model))
    local = [s for s, home in enumerate(schedule.rank_of_stage) if home == group.rank]
    stages = {s: ModelStage(model, parts[s], loss) for s in local}
    stores = {s: WeightGradientStore(case.limit_bytes) for s in local}
    for s, stage in stages.items():
        defer_weight_gradients(stage, stores[s])
    holders = Placement(tuple(parts), tuple(schedule.rank_of_stage)).homes(EMBEDDING)
    shared = None
    if len(holders) > 1 and group.rank in holders:
        shared = SharedParameters({EMBEDDING: shared_embedding(stages)}, holders, group)
    owner = None if keeper is None else keeper(stages)
    runtime = PipelineRuntime(
        schedule,
        stages,
        group=group,
        device=torch.device("cpu"),
        stores=stores,
        keeper=owner,
        carries_gradient=case.indexer != "warm_up",
    )
    return Piped(model, stages, stores, shared, runtime, loss, owner)


def shared_embedding(stages: dict[int, ModelStage]) -> nn.Parameter:
    named = [pair for stage in stages.values() for pair in stage.named_parameters()]
    return next(parameter for name, parameter in named if name == EMBEDDING)


def pipeline_group(world: World, ranks: int) -> Group:
    return Mesh(ParallelConfig(pp=ranks), world).group("pp")
