"""Search over layouts: which way of spreading a run over GPUs fits, and which of them is fastest.

Every combination of axes and schedule is estimated in closed form with the lightest recomputation
and sharding that fit its memory; the best of them are simulated. Where layers would be computed
again, or nothing fits, the alternative is a choice for each layer (`mixed`). Rates are assumptions
(`Hardware`), so the ranking means more than the days.
"""

import contextlib
import itertools
from collections.abc import Iterator

from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.plan.activation_choice import ActivationBoundError
from fivefold.plan.chain import model_pieces
from fivefold.plan.config import Precision, Recompute, TrainingRun
from fivefold.plan.evaluate import LayoutPlan, estimate_layout, simulate_layout
from fivefold.plan.hardware import Hardware
from fivefold.plan.layout import Layout, Sharding
from fivefold.plan.mixed import plan_mixed
from fivefold.plan.piece import Piece, merge_pieces
from fivefold.plan.rank_load import Problem
from fivefold.plan.stage_split import split_evenly

GLM5_PRETRAINING = TrainingRun(total_tokens=28_500_000_000_000, batch_tokens=64 * 1024**2)
"""Tokens of GLM-5's pre-training (report, section 2); the batch is GLM-4.5's after warm-up."""

_SIMULATED = 12
"""Fitting layouts that are simulated, best estimates first."""

_MIXED = 24
"""Layouts whose layers are treated one by one, best estimates first."""

_MOST_CHUNKS = 6
"""Most stages a rank that interleaving is tried with."""

_SHORTEST_SHARE = 2048
"""Fewest tokens of a row that context ranks are given each."""


def search_layouts(
    config: ModelConfig,
    gpus: int,
    hardware: Hardware,
    run: TrainingRun = GLM5_PRETRAINING,
    *,
    precision: Precision | None = None,
    best: int = 8,
) -> list[LayoutPlan]:
    """Return the `best` layouts that fit, fastest first, at most one for each set of axes.

    `run.recompute` is ignored: the search chooses. Microbatches are one row each.

    Raises:
        ConfigError: no layout fits, or the run lacks a batch or is the indexer's warm-up.
    """
    _check_run(run)
    problem = Problem(config, run, hardware, precision or Precision())
    search = _Search(problem)
    estimates = [search.cheapest(axes) for axes in _axes(problem, gpus)]
    estimates.sort(key=lambda plan: plan.step_seconds)
    fastest: dict[tuple[int, ...], LayoutPlan] = {}
    for plan in itertools.islice(filter(None, map(search.simulate, estimates)), _SIMULATED):
        known = fastest.get(plan.layout.axes)
        if known is None or plan.step_seconds < known.step_seconds:
            fastest[plan.layout.axes] = plan
    if not fastest:
        raise ConfigError(
            expected=f"a layout that fits {gpus} {hardware.name} GPUs",
            found="none: every one exceeds the memory of some rank or starves the pipeline",
            fix="Give more GPUs, or GPUs with more memory, or a larger batch",
        )
    return sorted(fastest.values(), key=lambda plan: plan.step_seconds)[:best]


def evaluate_layout(
    config: ModelConfig,
    layout: Layout,
    hardware: Hardware,
    run: TrainingRun = GLM5_PRETRAINING,
    *,
    precision: Precision | None = None,
) -> LayoutPlan:
    """Return the simulated figures of one given layout, whether it fits or not.

    Raises:
        ConfigError: more stages than the model has pieces, or a run as `search_layouts` refuses.
    """
    _check_run(run)
    pieces = config.num_hidden_layers + 2 + config.num_nextn_predict_layers
    if layout.pipeline * layout.chunks > pieces:
        raise ConfigError(
            expected=f"at most {pieces} stages, one for each layer, the embedding and the head",
            found=f"{layout.pipeline} pipeline ranks with {layout.chunks} chunks",
            fix="Use fewer pipeline ranks or chunks",
        )
    problem = Problem(config, run, hardware, precision or Precision())
    return simulate_layout(problem, layout, _Search(problem).stages(layout))


def _check_run(run: TrainingRun) -> None:
    if run.batch_tokens is None or run.stage == "warmup":
        raise ConfigError(
            expected="a dense or sparse training run with `batch_tokens`",
            found=f"stage `{run.stage}`, batch {run.batch_tokens}",
            fix="Set `batch_tokens`; the indexer's warm-up runs on the layout of its neighbours",
        )


def _axes(problem: Problem, gpus: int) -> Iterator[Layout]:
    """Generate layouts without their policies."""
    config, hardware, run = problem.config, problem.hardware, problem.run
    widest = min(hardware.gpus_per_node, config.num_attention_heads)
    tensors = [size for size in _powers(widest) if config.num_attention_heads % size == 0]
    contexts = _powers(max(1, run.context_tokens // _SHORTEST_SHARE))
    pipelines = _powers(min(64, config.num_hidden_layers, gpus))
    experts = [
        size for size in _powers(config.n_routed_experts) if config.n_routed_experts % size == 0
    ]
    for pipeline, context, tensor in itertools.product(pipelines, contexts, tensors):
        if gpus % (pipeline * context * tensor):
            continue
        stage_ranks = gpus // pipeline
        for expert in experts:
            if stage_ranks % expert:
                continue
            for schedule, chunks in _schedules(config, pipeline):
                layout = Layout(
                    gpus=gpus,
                    pipeline=pipeline,
                    context=context,
                    tensor=tensor,
                    expert=expert,
                    schedule=schedule,
                    chunks=chunks,
                )
                rows = problem.batch_tokens / run.context_tokens
                if rows >= layout.data * pipeline:
                    yield layout


def _powers(limit: int) -> list[int]:
    """Return the powers of two up to `limit`."""
    return [2**power for power in range(limit.bit_length()) if 2**power <= limit]


def _schedules(config: ModelConfig, pipeline: int) -> list[tuple[str, int]]:
    if pipeline == 1:
        return [("1f1b", 1)]
    pairs = [("1f1b", 1), ("zb_h1", 1), ("zb_v", 2), ("v_half", 2)]
    pairs += [("interleaved", chunks) for chunks in range(2, _MOST_CHUNKS + 1)]
    return [
        (name, chunks) for name, chunks in pairs if pipeline * chunks <= config.num_hidden_layers
    ]


class _Search:
    """Caches chains and cuts, which many layouts share."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.chains: dict[tuple, list[Piece]] = {}
        self.cuts: dict[tuple, list[list[Piece]]] = {}
        self.merged: dict[tuple, list[Piece]] = {}
        self.tries = _MIXED

    def stages(self, layout: Layout) -> list[Piece]:
        """Return the stages of the cut chain."""
        key = *_chain_key(layout), layout.pipeline * layout.chunks
        if key not in self.merged:
            self.merged[key] = [merge_pieces(pieces) for pieces in self.cut(layout)]
        return self.merged[key]

    def cut(self, layout: Layout) -> list[list[Piece]]:
        """Return the chain under this layout, cut into equal work."""
        key = _chain_key(layout)
        if key not in self.chains:
            problem = self.problem
            run = problem.run.model_copy(update={"recompute": layout.recompute})
            self.chains[key] = model_pieces(
                problem.config, run, layout, problem.hardware, problem.precision
            )
        count = layout.pipeline * layout.chunks
        if (*key, count) not in self.cuts:
            chain = self.chains[key]
            runs = split_evenly([piece.seconds for piece in chain], count)
            self.cuts[*key, count] = [chain[run.start : run.stop] for run in runs]
        return self.cuts[*key, count]

    def fits(self, plan: LayoutPlan) -> bool:
        """Does the fullest rank hold everything, and its host what was moved there?"""
        hardware = self.problem.hardware
        fits_device = plan.memory_bytes <= hardware.memory_bytes - hardware.reserved_bytes
        return fits_device and plan.host_bytes <= hardware.host_bytes

    def cheapest(self, axes: Layout) -> LayoutPlan:
        """Return the axes with the cheapest policies that fit, or those of fewest bytes.

        Computing nothing again is worth more than any sharding costs, so it is tried first.
        """
        plan = None
        for recompute, sharding in itertools.product(_recomputes(axes), _shardings(axes)):
            layout = axes.model_copy(update={"recompute": recompute, "sharding": sharding})
            plan = estimate_layout(self.problem, layout, self.stages(layout))
            if self.fits(plan):
                break
        assert plan is not None, "axes have policies"
        return plan

    def simulate(self, estimate: LayoutPlan) -> LayoutPlan | None:
        """Return the simulated figures; of layers treated one by one, if that is faster.

        None where nothing fits, as far as so many tries tell.
        """
        layout, plans = estimate.layout, []
        if self.fits(estimate):
            plans.append(simulate_layout(self.problem, layout, self.stages(layout)))
        if layout.recompute != "none" and self._fits_without_activations(estimate):
            plain = layout.model_copy(update={"recompute": "none"})
            if self.tries:
                self.tries -= 1
                with contextlib.suppress(ActivationBoundError):
                    plans.append(plan_mixed(self.problem, plain, self.cut(plain)))
        return min(filter(self.fits, plans), key=lambda plan: plan.step_seconds, default=None)

    def _fits_without_activations(self, plan: LayoutPlan) -> bool:
        hardware = self.problem.hardware
        room = hardware.memory_bytes - hardware.reserved_bytes
        return plan.state_bytes + plan.buffer_bytes < room


def _chain_key(layout: Layout) -> tuple:
    """Return what the pieces of the chain depend on."""
    return layout.context, layout.tensor, layout.expert, layout.recompute


def _recomputes(layout: Layout) -> tuple[Recompute, ...]:
    """Return what may be recomputed: a split backward keeps every product's input until its W."""
    if layout.has_fused_backward:
        return "none", "feed_forward", "full"
    return ("none",)


def _shardings(layout: Layout) -> tuple[Sharding, ...]:
    """Return what data ranks may share: gradients of pipelines need rolling buffers."""
    if layout.pipeline == 1:
        return "optimizer", "gradients", "weights"
    return ("optimizer", "rolling") if layout.chunks > 2 else ("optimizer",)
