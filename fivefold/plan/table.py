"""The one look of all planner tables: no boxes, dim headers, numbers to the right."""

from rich.console import Group
from rich.table import Table
from rich.text import Text


def make_table(first: str, *others: str, notes: bool = False) -> Table:
    """Return an empty table; with `notes` the last column holds sentences and aligns left."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, header_style="dim", no_wrap=True)
    for header in others:
        table.add_column(header, justify="right", header_style="dim", no_wrap=True)
    if notes:
        table.columns[-1].justify = "left"
        table.columns[-1].no_wrap = False
        table.columns[-1].style = "dim"
    return table


def with_title(title: str, table: Table) -> Group:
    """Put a heading over a table, as wide as the terminal however narrow the table is."""
    return Group(Text(title, style="bold"), table)
