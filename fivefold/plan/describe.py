"""What a model is, costs and needs, for a reader who never saw it.

`describe_model` gathers the numbers, `render` draws them for the terminal in at most 100 columns.
`fivefold plan RECIPE` prints one such page for each model of a recipe.
"""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from fivefold.models.config import ModelConfig
from fivefold.plan.config import Precision, TrainingRun
from fivefold.plan.flops import (
    TokenFlops,
    decode_flops,
    forward_flops,
    sparse_pays_from,
    training_flops,
)
from fivefold.plan.memory import (
    CacheBytes,
    StateBytes,
    activation_bytes,
    cache_bytes,
    state_bytes,
)
from fivefold.plan.parameters import ParameterCount, count_parameters
from fivefold.plan.shape import describe_shape
from fivefold.plan.table import make_table, with_title
from fivefold.plan.unit import format_bytes, format_count, format_flops, format_share

_CONTEXTS = (256, 512, 1024, 4096, 8192, 32_768, 131_072, 202_752)


@dataclass(frozen=True)
class ContextCost:
    """FLOPs a token at one context length; `sparse` is None without an indexer."""

    context: int
    forward: TokenFlops
    sparse: TokenFlops | None
    decode: float
    decode_sparse: float | None


@dataclass(frozen=True)
class RunCost:
    """A training run's FLOPs; `step` is the average token's share of a step."""

    run: TrainingRun
    step: TokenFlops
    hardware_flops_a_token: float

    @property
    def total(self) -> float:
        """Model FLOPs of the whole run, without recomputation."""
        return self.step.total * self.run.total_tokens


@dataclass(frozen=True)
class ModelPlan:
    """Everything that `render` prints."""

    name: str
    config: ModelConfig
    parameters: ParameterCount
    contexts: tuple[ContextCost, ...]
    state: StateBytes
    activations: dict[str, float]
    cache: CacheBytes
    run: RunCost | None
    sparse_pays_from: int | None
    """Shortest context (tokens) at which a sparse forward pass costs less than a dense one."""


def describe_model(
    config: ModelConfig,
    *,
    name: str = "model",
    run: TrainingRun | None = None,
    precision: Precision | None = None,
) -> ModelPlan:
    """Compute the plan of one model; contexts stop at the model's longest."""
    precision = precision or Precision()
    longest = config.max_position_embeddings
    contexts = sorted({min(context, longest) for context in (*_CONTEXTS, longest)})[-6:]
    return ModelPlan(
        name=name,
        config=config,
        parameters=count_parameters(config),
        contexts=tuple(_context_cost(config, context) for context in contexts),
        state=state_bytes(config, precision),
        activations={
            "everything kept": activation_bytes(config, precision),
            "feed-forward recomputed": activation_bytes(config, precision, "feed_forward"),
            "layer inputs only": activation_bytes(config, precision, "full"),
        },
        cache=cache_bytes(config, precision),
        run=None if run is None else _run_cost(config, run),
        sparse_pays_from=sparse_pays_from(config),
    )


def render(plan: ModelPlan) -> RenderableType:
    """Draw the plan as tables for a terminal of 100 columns."""
    parts: list[RenderableType] = [_headline(plan), _parameter_table(plan), _flops_table(plan)]
    parts.append(_byte_table(plan))
    if plan.run is not None:
        parts.append(_run_table(plan.run))
    return Group(*[item for part in parts for item in (part, Text())][:-1])


def _context_cost(config: ModelConfig, context: int) -> ContextCost:
    sparse = config.has_indexer
    return ContextCost(
        context=context,
        forward=forward_flops(config, context),
        sparse=forward_flops(config, context, sparse=True) if sparse else None,
        decode=decode_flops(config, context).total,
        decode_sparse=decode_flops(config, context, sparse=True).total if sparse else None,
    )


def _run_cost(config: ModelConfig, run: TrainingRun) -> RunCost:
    again = training_flops(config, run.context_tokens, stage=run.stage, recompute=run.recompute)
    return RunCost(
        run=run,
        step=training_flops(config, run.context_tokens, stage=run.stage),
        hardware_flops_a_token=again.total,
    )


def _headline(plan: ModelPlan) -> Text:
    count = plan.parameters
    text = Text()
    text.append(plan.name, style="bold")
    text.append(f"  {format_count(count.total_without_mtp)} parameters", style="bold cyan")
    text.append(f", {format_count(count.active)} active a token")
    if count["mtp"].total:
        text.append(f", {format_count(count.total)} with the MTP layer")
    text.append("".join(f"\n{line}" for line in describe_shape(plan.config)), style="dim")
    return text


def _parameter_table(plan: ModelPlan) -> Group:
    count = plan.parameters
    table = make_table("part", "total", "share", "active a token", "share", "exact total")
    for part in count.parts:
        if part.total == 0:
            continue
        table.add_row(
            part.name,
            format_count(part.total),
            format_share(part.total / count.total),
            format_count(part.active) if part.active else "-",
            format_share(part.active / count.active) if part.active else "-",
            f"{part.total:,}",
        )
    table.add_row(
        "all",
        format_count(count.total),
        "",
        format_count(count.active),
        "",
        f"{count.total:,}",
        style="bold",
    )
    return with_title("Parameters", table)


def _flops_table(plan: ModelPlan) -> Group:
    largest = max(cost.decode for cost in plan.contexts)
    unit, size = ("GFLOP", 1e9) if largest >= 1e9 else ("MFLOP", 1e6)
    digits = 1 if largest >= 100 * size else 2
    headers = ["dense", "attention"]
    headers += ["sparse", "attention", "indexer"] if plan.config.has_indexer else []
    headers += ["decode dense", "decode sparse"] if plan.config.has_indexer else ["decode"]
    table = make_table("context", *headers)
    for cost in plan.contexts:
        cells = [f"{cost.forward.total / size:,.{digits}f}", _core_share(cost.forward)]
        if cost.sparse is not None:
            indexer = cost.sparse.indexer_scores + cost.sparse.indexer_projections
            cells += [f"{cost.sparse.total / size:,.{digits}f}", _core_share(cost.sparse)]
            cells.append(format_share(indexer / cost.sparse.total))
        for decode in (cost.decode, cost.decode_sparse):
            if decode is not None:
                cells.append(f"{decode / size:,.{digits}f}")
        table.add_row(f"{cost.context:,}", *cells)
    title = f"Forward {unit} a token, with the shares of attention over keys and of the indexer"
    if not plan.config.has_indexer:
        title = f"Forward {unit} a token, with the share of attention over keys"
    if plan.sparse_pays_from is None:
        return with_title(title, table)
    saving = f"Selecting keys costs fewer FLOPs from {plan.sparse_pays_from:,} tokens on."
    return Group(with_title(title, table), Text(saving, style="italic"))


def _core_share(flops: TokenFlops) -> str:
    return format_share(flops.attention_core / flops.total)


def _byte_table(plan: ModelPlan) -> Group:
    cache, longest = plan.cache, plan.config.max_position_embeddings
    table = make_table("kind", "bytes", "", notes=True)
    table.add_row("weights", format_bytes(plan.state.weights), "read by the forward pass")
    table.add_row("gradients", format_bytes(plan.state.gradients), "accumulated over microbatches")
    table.add_row("master weights", format_bytes(plan.state.master_weights), "the optimizer's copy")
    table.add_row("moments", format_bytes(plan.state.moments), "Muon: one a weight; AdamW: two")
    table.add_row(
        "training state", format_bytes(plan.state.total), "sum of the above", style="bold"
    )
    for policy, size in plan.activations.items():
        table.add_row("activations a token", format_bytes(size), policy)
    ratio = cache.expanded / cache.total
    saved = f", {ratio:.0f}x less than all heads' keys and values" if ratio > 1 else ""
    table.add_row("cache a token", format_bytes(cache.total), f"while decoding{saved}")
    table.add_row(
        "cache of one sequence", format_bytes(cache.total * longest), f"at {longest:,} tokens"
    )
    return with_title("Bytes of one unsharded copy", table)


def _run_table(cost: RunCost) -> Group:
    run, step = cost.run, cost.step
    table = make_table("quantity", "value", "", notes=True)
    steps = "" if run.batch_tokens is None else f"{run.total_tokens / run.batch_tokens:,.0f} steps"
    table.add_row("tokens", format_count(run.total_tokens), steps)
    table.add_row(
        "FLOPs a token",
        format_flops(step.total),
        f"forward and backward at {run.context_tokens:,} tokens, {run.stage} stage",
    )
    for name, flops in vars(step).items():
        if flops:
            share = format_share(flops / step.total)
            table.add_row(f"  {name.replace('_', ' ')}", format_flops(flops), share, style="dim")
    if cost.hardware_flops_a_token > step.total:
        again = format_share(cost.hardware_flops_a_token / step.total - 1)
        table.add_row("  computed again", "", f"{again} on top, not in model FLOPs", style="dim")
    table.add_row("total", format_flops(cost.total), "model FLOPs of the run", style="bold")
    return with_title("Training run", table)
