"""The one look of all planner tables: no boxes, dim headers, numbers to the right."""

from rich.table import Table


def make_table(title: str, first: str, *others: str, notes: bool = False) -> Table:
    """Return an empty table; with `notes` the last column holds sentences and aligns left."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(first, header_style="dim", no_wrap=True)
    for header in others:
        table.add_column(header, justify="right", header_style="dim", no_wrap=True)
    if notes:
        table.columns[-1].justify = "left"
        table.columns[-1].no_wrap = False
        table.columns[-1].style = "dim"
    return table
