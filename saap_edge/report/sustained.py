"""A run that decoded for minutes, for the terminal: its course, and whether the board kept its speed."""

from __future__ import annotations

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.documents.bench import Bench, BenchedArtifact
from saap_edge.documents.measured import Sustained, Window
from saap_edge.report.tables import new_table, number

__all__ = ["render_sustained"]

ROWS = 10  # of the table; the document has more


def render_sustained(bench: Bench) -> list[RenderableType]:
    """A table and lines for every artifact that decoded for minutes."""
    parts: list[RenderableType] = []
    for entry in bench.artifacts:
        if entry.metrics.sustained:
            parts += _course(entry, entry.metrics.sustained, bench)
            parts += _words(entry.metrics.sustained)
    return parts


def _course(entry: BenchedArtifact, found: Sustained, bench: Bench) -> list[RenderableType]:
    title = f"{entry.name}: {found.seconds / 60:g} minutes of decoding on {bench.machine.cpu}"
    table = new_table(escape(title), "after", "decode tok/s", "MHz", "°C", "had a CPU")
    step = -(-len(found.course) // ROWS)
    for row in [found.course[index] for index in range(0, len(found.course), step)]:
        share = "-" if row.cpu_share is None else f"{row.cpu_share:.0%}"
        table.add_row(_time(row), number(row.decode_tok_s, 1), number(row.mhz, 0), number(row.temperature_c, 1), share)
    return [table]


def _time(row: Window) -> str:
    return f"{row.at_s:.1f} s" if row.at_s < 60 else f"{row.at_s / 60:.1f} min"


def _words(found: Sustained) -> list[str]:
    """Whether the speed held, and what the board says of it."""
    first, last = f"{found.first_tok_s.median:.1f}", f"{found.last_tok_s.median:.1f}"
    share = f"{found.pct.median:.1f} % [{found.pct.low:.1f}, {found.pct.high:.1f}]"
    if found.pct.high < 100:
        word = "[bold red]slowed down[/]"
    elif found.pct.low > 100:
        word = "[green]became faster[/]"
    else:
        word = "[green]no change of speed is seen[/]"
    lines = [f"  {word}: {first} => {last} tok/s, the last {found.part_s:.0f} s at {share} of the first"]
    state = []
    if found.first_mhz is not None and found.last_mhz is not None:
        state.append(f"clock {found.first_mhz:.0f} => {found.last_mhz:.0f} MHz")
    if found.first_temperature_c is not None and found.last_temperature_c is not None:
        state.append(f"{found.first_temperature_c:.0f} => {found.last_temperature_c:.0f} °C")
    told = {
        True: "[bold red]the board throttled[/]: cool it, and check its power supply",
        False: "the board did not throttle", None: "it does not tell whether it throttled",
    }[found.throttled]  # fmt: skip
    return [*lines, f"  {', '.join([*state, told])}"]
