"""What a simulated schedule amounts to, as a table for the terminal."""

from rich.console import Group

from fivefold.plan.simulate import Timeline
from fivefold.plan.table import make_table, with_title
from fivefold.plan.unit import format_share


def render_timeline(timeline: Timeline) -> Group:
    """Draw one row a rank: busy share, idle share of its own span, most memory held at once.

    Memory is in the unit of the costs; with `rank_costs` that is whole microbatches.
    """
    schedule = timeline.schedule
    title = (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.stages} stages, "
        f"{schedule.microbatches} microbatches; bubble {format_share(timeline.bubble_rate)}, "
        f"makespan {timeline.makespan:.4g}"
    )
    table = make_table("rank", "first start", "last end", "busy", "idle inside", "holds")
    for rank, row in enumerate(timeline.spans):
        start, end = row[0][1], row[-1][2]
        work = timeline.work[rank]
        table.add_row(
            str(rank),
            f"{start:.4g}",
            f"{end:.4g}",
            format_share(work / timeline.makespan),
            format_share(1 - work / (end - start)),
            f"{timeline.peak_memory[rank]:.4g}",
        )
    return with_title(title, table)
