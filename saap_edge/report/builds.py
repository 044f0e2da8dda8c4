"""Which builds of a runtime were measured, for the terminal: a table, and what one should know of the comparison."""

from __future__ import annotations

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.documents.bench import Bench, Pair
from saap_edge.report.tables import new_table

__all__ = ["render_builds"]

LONGEST = 200  # characters of what a runtime says of its build


def render_builds(bench: Bench) -> list[RenderableType]:
    """The table and the lines; nothing where no build was named."""
    named = {entry.name: entry.runtime for entry in bench.artifacts if entry.runtime and entry.runtime.program}
    if not named:
        return []
    table = new_table("builds of the runtime", "artifact", "version", "runs in", "says of its build")
    for column in table.columns:
        column.justify = "left"
    for name, runtime in named.items():
        versions = ", ".join(f"{package} {version}" for package, version in runtime.versions.items())
        build = runtime.build or "-"
        shown = build if len(build) <= LONGEST else f"{build[:LONGEST]}..."
        table.add_row(name, escape(versions), escape(runtime.program or "-"), escape(shown))
    return [table, *dict.fromkeys(line for pair in bench.pairs() for line in _lines(pair))]


def _lines(pair: Pair) -> list[str]:
    """What one should know of a pair."""
    base, candidate = pair.base.runtime, pair.candidate.runtime
    if base is None or candidate is None:
        return []
    files = [(side.format, side.metrics.file_bytes, side.metrics.parameters) for side in (pair.base, pair.candidate)]
    lines = []
    places = [runtime.module or runtime.program for runtime in (base, candidate)]
    if places[0] == places[1] and files[0] == files[1]:
        lines.append("  [yellow]the same build[/]: both sides ran the same files of the runtime, so the ratio is noise")
    if base.own_loop != candidate.own_loop:
        lines.append(
            "  [yellow]two loops[/]: llama-bench times without saap-edge's loop, which costs some percent "
            "(docs/measuring.md): for small changes give llama-bench on both sides"
        )
    return lines
