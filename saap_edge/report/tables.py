"""Tables for the terminal, and figures in them."""

from __future__ import annotations

from rich.table import Table

__all__ = ["change", "new_table", "number"]


def new_table(title: str, *columns: str) -> Table:
    """An empty table. The first column is for names, the others are for figures."""
    # At least as wide as its title: a title that is broken over a narrow table is hard to read.
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, min_width=min(len(title), 110))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def change(before: int, after: int) -> str:
    """Two widths, or one where they are the same.

    >>> change(8, 6), change(8, 8)
    ('8 => 6', '8')
    """
    return f"{before} => {after}" if before != after else str(before)


def number(value: float | None, digits: int = 2) -> str:
    """A figure with `digits` decimals, or a dash.

    >>> number(3.14159), number(None)
    ('3.14', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"
