"""Regenerate the tables and plots of `docs/experiments/schedules.md` from the planner.

Peer: the published bubble rates of the zero-bubble paper's ZB-2p, whose search `automatic` repeats
under the same costs and memory cap. The ratio compares busy shares (one minus the bubble rate)
and is the median over the rows. Nothing is timed: the numbers do not depend on the machine.

    python benchmarks/schedule_tables.py            prints the tables and the JSON line
    python benchmarks/schedule_tables.py --quick    leaves out the rows with 16 and 32 ranks
    python benchmarks/schedule_tables.py --write    also writes them into the page, and the plots
"""

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fivefold.models.preset import preset
from fivefold.plan.automatic import automatic, search_policies
from fivefold.plan.dense_gpt import gpt_parameters, gpt_step_flops
from fivefold.plan.flops import training_flops
from fivefold.plan.hardware import find_hardware
from fivefold.plan.layout_table import render_layouts
from fivefold.plan.make_schedule import make_schedule, rank_costs
from fivefold.plan.published import (
    BUBBLE_ROWS,
    DEEPSEEK_CONTEXT,
    DEEPSEEK_GPUS,
    DEEPSEEK_TFLOPS,
    DEEPSEEK_TOKENS_A_DAY,
    GPT_CONTEXT,
    GPT_ROWS,
    GPT_VOCABULARY,
    WEIGHT_MEMORY_SHARE,
    ZERO_ROWS,
    ZERO_SIZES,
    BubbleRow,
)
from fivefold.plan.schedule import loop_placement
from fivefold.plan.search import GLM5_PRETRAINING, search_layouts
from fivefold.plan.sharding import zero_bytes
from fivefold.plan.simulate import StageCosts, simulate
from fivefold.plan.timeline import draw_timeline

PAGE = Path(__file__).parents[1] / "docs" / "experiments" / "schedules.md"
TIMELINES = ("1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "v_half")
INTERLEAVED_CHUNKS = {"1.5B": 3, "6.2B": 4, "14.6B": 3, "28.3B": 2}


def main() -> None:
    """Print every table, write page and plots if asked, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the rows with 8 ranks")
    parser.add_argument("--write", action="store_true", help="update the page and its plots")
    arguments = parser.parse_args()
    rows = [row for row in BUBBLE_ROWS if row.ranks == 8 or not arguments.quick]
    searched = {row: _search_rates(row) for row in rows}
    tables = {
        "bubbles": _bubble_table(searched),
        "shapes": _shape_table(),
        "megatron": _megatron_table(),
        "zero": _zero_table(),
        "deepseek": _deepseek_table(),
        "layouts": _layout_table(),
    }
    for table in tables.values():
        print(table, end="\n\n")
    if arguments.write:
        _write_page(tables)
        _draw_plots()
    busy = [100 * (1 - rates[1]) for rates in searched.values()]
    published = [100 * (1 - row.zb_2p) for row in rows]
    ratios = [ours / peer for ours, peer in zip(busy, published, strict=True)]
    outcome = {
        "name": "schedule_tables",
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "ours": round(statistics.mean(busy), 2),
        "peer": round(statistics.mean(published), 2),
        "unit": "% busy under the costs and memory of ZB-2p",
        "pairs": len(rows),
    }
    print(json.dumps(outcome))


def _row_costs(row: BubbleRow, name: str, chunks: int = 2, share: float = 1.0) -> StageCosts:
    """Return the profiled costs of a row for the named schedule."""
    return rank_costs(
        name,
        row.ranks,
        chunks=chunks,
        forward=row.forward,
        input_gradient=row.input_gradient,
        weight_gradient=row.weight_gradient,
        edge=row.edge,
        weight_memory=share,
    )


def _search_rates(row: BubbleRow) -> tuple[float, float]:
    """Return the bubble rates of list scheduling in the memory of 1F1B and in twice that."""
    rates = []
    for cap, share in ((row.ranks, 1.0), (2 * row.ranks, WEIGHT_MEMORY_SHARE[row.model])):
        costs = _row_costs(row, "automatic", share=share)
        caps = (float(cap),) * row.ranks
        schedule = search_policies(loop_placement(row.ranks), row.microbatches, costs, caps)
        rates.append(simulate(schedule, costs).bubble_rate)
    return rates[0], rates[1]


def _named_rate(row: BubbleRow, name: str) -> float:
    chunks = INTERLEAVED_CHUNKS[row.model]
    costs = _row_costs(row, name, chunks)
    schedule = make_schedule(name, row.ranks, row.microbatches, chunks=chunks, costs=costs)
    return simulate(schedule, costs).bubble_rate


def _bubble_table(searched: dict[BubbleRow, tuple[float, float]]) -> str:
    header = ("model", "ranks", "microbatches", "1F1B", "1F1B-I", "ZB-H1", "ZB-H2")
    header += ("1p", "2p", "ZB-V")
    lines = []
    for row, (one, two) in searched.items():
        pairs = [
            (row.one_f_one_b, _named_rate(row, "1f1b")),
            (row.interleaved, _named_rate(row, "interleaved")),
            (row.zb_h1, _named_rate(row, "zb_h1")),
            (row.zb_h2, _named_rate(row, "zb_h2")),
            (row.zb_1p, one),
            (row.zb_2p, two),
        ]
        cells = [f"{published:.4f} / {ours:.4f}" for published, ours in pairs]
        cells.append(f"{_named_rate(row, 'zb_v'):.4f}")
        lines.append((row.model, str(row.ranks), str(row.microbatches), *cells))
    return _markdown(header, lines)


def _shape_table() -> str:
    """Compare schedules at equal costs, 8 ranks and 64 microbatches; memory in units of 1F1B's."""
    lines = []
    for name in ("1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "v_half", "v_min", "automatic"):
        costs = rank_costs(name, 8)
        timeline = simulate(make_schedule(name, 8, 64, costs=costs), costs)
        most, least = max(timeline.peak_memory) / 8, min(timeline.peak_memory) / 8
        lines.append((name, f"{timeline.bubble_rate:.2%}", f"{most:.2f}", f"{least:.2f}"))
    return _markdown(("schedule", "bubble", "memory, fullest rank", "emptiest rank"), lines)


def _megatron_table() -> str:
    lines = []
    for row in GPT_ROWS:
        shape = row.layers, row.hidden, GPT_VOCABULARY, GPT_CONTEXT
        seconds = gpt_step_flops(*shape, row.batch_rows) / (row.gpus * row.tflops_a_gpu * 1e12)
        lines.append(
            (
                f"{row.billions} / {gpt_parameters(*shape) / 1e9:.1f}",
                f"{row.gpus}",
                f"{row.percent_of_peak}% / {row.tflops_a_gpu / 3.12:.1f}%",
                f"{row.petaflops} / {row.gpus * row.tflops_a_gpu / 1e3:.1f}",
                f"{seconds:.1f}",
                f"{0.75 * row.tflops_a_gpu / 3.12:.1f}%",
            )
        )
    header = ("parameters, B", "GPUs", "share of peak", "PFLOP/s", "step, s", "MFU")
    return _markdown(header, lines)


def _zero_table() -> str:
    lines = []
    for ranks, models in ZERO_ROWS.items():
        cells = [
            " ".join(
                f"{published:g} / {_short(zero_bytes(size, ranks, stage + 1) / 1e9)}"
                + (";" if stage < 2 else "")
                for stage, published in enumerate(stages)
            )
            for size, stages in zip(ZERO_SIZES, models, strict=True)
        ]
        lines.append((str(ranks), *cells))
    return _markdown(("ranks", "7.5B", "128B", "1T"), lines)


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _deepseek_table() -> str:
    step = training_flops(preset("deepseek_v3", num_nextn_predict_layers=0), DEEPSEEK_CONTEXT)
    rate = DEEPSEEK_TOKENS_A_DAY / 86_400 / DEEPSEEK_GPUS / 1e12
    flops = {"causal": step.total, "non-causal": step.total + step.attention_core}
    peak = find_hardware("h800").peak_flops / 1e12
    lines = [
        (kind, f"{published:.0f}", f"{rate * flops[kind]:.1f}", f"{rate * flops[kind] / peak:.1%}")
        for kind, published in DEEPSEEK_TFLOPS.items()
    ]
    return _markdown(("attention counted", "published TFLOP/s", "ours", "of the bf16 peak"), lines)


def _layout_table() -> str:
    hardware = find_hardware("h100")
    plans = search_layouts(preset("glm5"), 1024, hardware)
    console = Console(width=100, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(render_layouts(plans, hardware, GLM5_PRETRAINING, name="glm5"))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "```text\n" + "\n".join(lines).strip() + "\n```"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write_page(tables: dict[str, str]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end -->` for every table."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda match, table=table: match[1] + table + "\n" + match[2], text, flags=re.S
        )
        assert count == 1, f"one place for the table {name}"
    PAGE.write_text(text, encoding="utf-8")


def _draw_plots() -> None:
    for name in TIMELINES:
        costs = rank_costs(name, 4)
        timeline = simulate(make_schedule(name, 4, 8, costs=costs), costs)
        path = PAGE.parent / f"timeline_{name}.svg"
        path.write_text(draw_timeline(timeline, width=960), encoding="utf-8")
    _draw_trade()


def _draw_trade() -> None:
    """Plot bubbles against microbatches, and against memory for the automatic schedule."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "fivefold", "svg.fonttype": "none", "font.size": 10}
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = (8, 12, 16, 24, 32, 48, 64, 96, 128)
    for name in ("1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "v_half", "v_min"):
        costs = rank_costs(name, 8)
        timelines = [simulate(make_schedule(name, 8, m, costs=costs), costs) for m in counts]
        rates = [100 * timeline.bubble_rate for timeline in timelines]
        (line,) = left.plot(counts, rates, label=name, linewidth=1.5)
        memory = max(timelines[6].peak_memory) / 8
        right.plot([memory], [rates[6]], "o", color=line.get_color())
        right.annotate(name, (memory, rates[6]), (5, 4), textcoords="offset points", fontsize=8)
    costs = rank_costs("automatic", 8)
    caps = [float(cap) for cap in range(2, 17)]
    curve = [simulate(automatic(loop_placement(8), 64, costs, (cap,) * 8), costs) for cap in caps]
    right.plot(
        [cap / 8 for cap in caps],
        [100 * timeline.bubble_rate for timeline in curve],
        color="#777777",
        linewidth=1,
        label="automatic under a cap",
    )
    left.set(xlabel="microbatches", ylabel="bubble, %", xscale="log", title="8 ranks, F = I = W")
    left.set_xticks(counts, [str(count) for count in counts])
    left.minorticks_off()
    left.legend(fontsize=8, frameon=False)
    right.set(
        xlabel="memory of the fullest rank, 1F1B = 1",
        ylim=(-2, 40),
        title="64 microbatches",
    )
    right.legend(fontsize=8, frameon=False)
    figure.savefig(PAGE.parent / "schedule_bubbles.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
