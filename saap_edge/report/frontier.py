"""The frontier and the fit for people: tables for the terminal, a page and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.formats import described
from saap_edge.report.tables import new_table, number
from saap_edge.report.terminal import VERDICT_COLOURS

__all__ = ["render_fit", "render_frontier", "told_search", "worth", "write_frontier"]


def worth(document: dict[str, Any]) -> str:
    """One sentence that says which pruned artifacts no other artifact beats.

    >>> row = {"name": "pruned 30% gguf-q4_0", "role": "pruned", "front": ["speed"]}
    >>> worth({"points": [row]})
    'Worth pruning for (nothing is as good and better in one) in speed: pruned 30% gguf-q4_0.'
    """
    found = {
        axis: [row["name"] for row in document["points"] if row["role"] == "pruned" and axis in row["front"]]
        for axis in ("speed", "bytes")
    }
    parts = [f"in {axis}: {', '.join(names)}" for axis, names in found.items() if names]
    if not parts:
        return "Pruning is not worth it here: at every speed and size a dense model is at least as good."
    return "Worth pruning for (nothing is as good and better in one) " + "; ".join(parts) + "."


def render_frontier(document: dict[str, Any]) -> list[RenderableType]:
    """A table with a row for each artifact. The predicted speed on another board has a column of its own."""
    elsewhere = not document["on_target"]
    title = f"frontier of {document['model']}: speed beside {document['anchor']} on {document['machine']['cpu']}"
    columns = ["artifact", "removed", "perplexity", "speed [95 %]", "ideal", "tok/s here"]
    columns += [f"tok/s predicted for {document['target']}"] if elsewhere else []
    rows = new_table(escape(title), *columns, "file MiB", "front")
    for column in rows.columns[:4]:
        column.no_wrap = True
    for row in document["points"]:
        speed = row["speed"]
        cells = [
            row["name"], f"{row['removed']:.1%}" if row["removed"] else "", number(row["perplexity"]),
            f"{speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]", f"{row['ideal_speed']:.2f}",
            f"{row['decode_tok_s']:.1f}", *([_estimate(row["predicted_decode_tok_s"])] if elsewhere else []),
            f"{row['file_bytes'] / 2**20:.2f}", ", ".join(row["front"]),
        ]  # fmt: skip
        rows.add_row(*map(escape, cells))
    search = document.get("search")
    lines = [told_search(search, len(search["tried"]))] if search else []
    return [rows, *(f"  {escape(line)}" for line in (*lines, worth(document)))]


def _estimate(estimate: dict[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"


def render_fit(document: dict[str, Any]) -> list[RenderableType]:
    """A table of the ratios and formats that were tried, and a line on what was found."""
    rows = new_table("tried, in this order", "removed", "format", "", "limits")
    for row in document["tries"]:
        word = {"meets": "pass", "more": "fail", "less": "fail", "both": "fail"}[row["outcome"]]
        told = {"meets": "meets", "more": "too slow or large", "less": "too much lost", "both": "fails both ways"}
        limits = "; ".join(f"{v['metric']} {v['limit']}: {v['verdict']} ({v['reason']})" for v in row["verdicts"])
        colour = VERDICT_COLOURS[word]
        kind = f"{row['format']}{_others(row.get('point', {}))}"
        rows.add_row(f"{row['ratio']:g} %", escape(kind), f"[{colour}]{told[row['outcome']]}[/]", escape(limits))
    found, search = document["found"], document.get("search")
    if search:
        return [rows, *_searched(document, found)]
    if found is None:
        text = "no pruning of this model meets the budget: loosen a limit, or recover longer (--tokens)"
    elif not found["ratio"]:
        text = f"the dense model as {found['format']} meets the budget: do not prune"
    else:
        text = f"least pruning: {found['ratio']} %, as {found['format']} (fit.yaml)"
    if found and found["predicted"]:
        text += "; some of it is predicted: measure on the board (saap-edge bench BUNDLE --host)"
    return [rows, f"  [bold]{escape(text)}[/]"]


def _others(point: dict[str, Any]) -> str:
    """The axes of a point beside its ratio and format."""
    return "".join(f" {name}={value}" for name, value in point.items() if name not in ("ratio", "format"))


def told_search(search: dict[str, Any], tried: int) -> str:
    """How much of a space was searched, in a line.

    >>> told_search({"points": 76, "left": [{}], "running": 0}, 20)
    '20 of 76 models were tried, and 1 was left, because predictions rule it out or it cannot be made'
    """
    left, running = len(search["left"]), search["running"]
    parts = [f"{tried} of {search['points']} models were tried"]
    if left:
        them, are = ("it", "was") if left == 1 else ("them", "were")
        cannot = "it cannot be made" if left == 1 else "they cannot be made"
        parts.append(f"{left} {are} left, because predictions rule {them} out or {cannot}")
    if running:
        parts.append(f"{running} {'is' if running == 1 else 'are'} still tried by other processes")
    return ", and ".join(parts)


def _searched(document: dict[str, Any], found: dict[str, Any] | None) -> list[str]:
    """Lines on what a search for the best model found."""
    lines = [told_search(document["search"], len(document["tries"]))]
    if found is None:
        lines.append(
            "none of them meets the budget: loosen a limit, try more (--trials), or give the axes other values"
        )
    else:
        what = f"{found['ratio']:g} % removed" if found["ratio"] else "the dense model"
        where = " (fit.yaml)" if found["ratio"] else ": do not prune"
        lines.append(
            f"best of those that meet the budget: {what}, as {found['format']}{_others(found['point'])}, perplexity "
            f"{found['heldout_perplexity']:.4g} on held-out text{where}"
        )
        if found["predicted"]:
            lines[-1] += "; some of it is predicted: measure on the board (saap-edge bench BUNDLE --host)"
    return [f"  [bold]{escape(line)}[/]" for line in lines]


def write_frontier(document: dict[str, Any], out: Path) -> list[Path]:
    """Write frontier.json, frontier.html and frontier.png into `out`, each whole or not at all. Returns their paths."""
    from matplotlib.figure import Figure

    from saap_edge.report.figures import styled, svg
    from saap_edge.report.html import environment

    with styled():
        by_speed, by_size = (_figure(document, axis) for axis in ("speed", "bytes"))
        page = (
            environment()
            .get_template("frontier.html.j2")
            .render(frontier=document, worth=worth(document), plots=[svg(by_speed), svg(by_size)])
        )

        def picture(path: Path, figure: Figure = by_speed) -> None:
            figure.savefig(path, format="png", dpi=160, facecolor="white")

        writers: dict[str, Callable[[Path], object]] = {
            "frontier.json": lambda path: path.write_text(json.dumps(document, indent=1), encoding="utf-8"),
            "frontier.html": lambda path: path.write_text(page, encoding="utf-8"),
            "frontier.png": picture,
        }
        for name, write in writers.items():
            temporary = out / f".{name}-{os.getpid()}"
            write(temporary)
            temporary.replace(out / name)
    return [out / name for name in writers]


def _figure(document: dict[str, Any], axis: str) -> Any:
    from saap_edge.report.figures import Dot, frontier

    dots = []
    for row in document["points"]:
        if row["perplexity"] is None:
            continue
        size, speed = row["file_bytes"] / 2**20, row["speed"]
        x, low, high = (speed["ratio"], speed["low"], speed["high"]) if axis == "speed" else (size, size, size)
        record = described(row["format"])
        label = f"{record.quantisation} {row['ratio']:.0%}" if row["ratio"] else record.quantisation
        dots.append(Dot(label, record.kind, bool(row["ratio"]), x, low, high, row["perplexity"], axis in row["front"]))
    label = f"decode speed, {document['anchor']} = 1" if axis == "speed" else "file size, MiB"
    return frontier(dots, label, falling=axis == "bytes")
