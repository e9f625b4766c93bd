"""The layout search's result as a table for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from fivefold.plan.config import TrainingRun
from fivefold.plan.evaluate import LayoutPlan
from fivefold.plan.hardware import Hardware
from fivefold.plan.mixed import busiest_choice
from fivefold.plan.table import make_table, with_title
from fivefold.plan.unit import format_bytes, format_count, format_duration, format_share

_GIB = 1024**3
_AGAIN = {"none": "-", "feed_forward": "ffn", "full": "all"}


def render_layouts(
    plans: Sequence[LayoutPlan], hardware: Hardware, run: TrainingRun, *, name: str = "model"
) -> RenderableType:
    """Draw the plans, fastest first, in at most 100 columns, with every assumption below."""
    gpus = plans[0].layout.gpus
    title = (
        f"{name} on {gpus:,} {hardware.name} GPUs: {format_count(run.total_tokens)} tokens, "
        f"{run.context_tokens:,} a row, {format_count(run.batch_tokens or 0)} a step"
    )
    table = make_table(
        "layout", "schedule", "again", "shared", "GiB", "bubble", "step", "MFU", "days"
    )
    for plan in plans:
        days = run.total_tokens / plan.tokens_a_second / 86_400
        table.add_row(
            _axes(plan),
            _schedule(plan),
            "mixed" if plan.choices else _AGAIN[plan.layout.recompute],
            plan.layout.sharding,
            f"{plan.memory_bytes / _GIB:.1f}",
            format_share(plan.bubble_rate),
            f"{plan.step_seconds:.1f} s",
            format_share(plan.mfu),
            f"{days:,.1f}",
        )
    parts: list[RenderableType] = [with_title(title, table), _best(plans[0])]
    if any(plan.choices for plan in plans):
        parts.append(_mixed(plans, hardware))
    parts.append(Text(_assumptions(hardware), style="dim"))
    return Group(*[item for part in parts for item in (part, Text())][:-1])


def _mixed(plans: Sequence[LayoutPlan], hardware: Hardware) -> RenderableType:
    """Say what becomes of the layers of each mixed layout, on the rank that spends most on them."""
    table = make_table("mixed layout", "GiB", "on host", "added", "layers", notes=True)
    for plan in plans:
        if plan.choices:
            choice = busiest_choice(plan)
            table.add_row(
                _axes(plan),
                f"{plan.activation_bytes / _GIB:.1f}",
                f"{plan.host_bytes / _GIB:.1f}",
                f"{plan.microbatches * choice.seconds:.1f} s",
                choice.summary(),
            )
    return with_title(
        "Activations after, time added to a step, layers of the rank that adds most; "
        f"host at {hardware.host_bandwidth / 1e9:.0f} GB/s",
        table,
    )


def _axes(plan: LayoutPlan) -> str:
    layout = plan.layout
    sizes = {
        "pp": layout.pipeline,
        "dp": layout.data,
        "cp": layout.context,
        "tp": layout.tensor,
        "ep": layout.expert,
    }
    return " ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "one GPU"


def _schedule(plan: LayoutPlan) -> str:
    layout = plan.layout
    if layout.pipeline == 1:
        return "-"
    return f"x{layout.chunks} 1f1b" if layout.schedule == "interleaved" else layout.schedule


def _best(plan: LayoutPlan) -> Text:
    """Say where memory and time of the fastest layout go."""
    return Text(
        f"First row: state {format_bytes(plan.state_bytes)}, activations "
        f"{format_bytes(plan.activation_bytes)}, buffers {format_bytes(plan.buffer_bytes)} on the "
        f"fullest rank;\n{plan.microbatches} microbatches a replica in "
        f"{plan.pipeline_seconds:.1f} s, exposed reduction "
        f"{format_duration(plan.reduction_seconds)}, optimizer "
        f"{format_duration(plan.optimizer_seconds)};\n"
        f"{plan.tokens_a_second / plan.layout.gpus:,.0f} tokens/s a GPU."
    )


def _assumptions(hardware: Hardware) -> str:
    return (
        "A model, not a measurement. Assumed: large matrix products reach "
        f"{hardware.matmul_efficiency:.0%} of {hardware.peak_flops / 1e12:,.0f} TFLOP/s,\n"
        f"experts {hardware.expert_efficiency:.0%}, half of it at {hardware.half_rate_rows:.0f} "
        f"rows, attention {hardware.attention_efficiency:.0%}, links "
        f"{hardware.link_efficiency:.0%};\n{hardware.hidden_dispatch:.0%} of the expert exchange "
        f"and {hardware.hidden_reduction:.0%} of reductions hide behind compute.\n"
        "Bubble is all idle time, uneven stages included. MFU counts causal model FLOPs, nothing "
        "computed again."
    )
