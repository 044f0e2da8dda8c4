"""One self-contained HTML page: verdict, frontier, widths, tables, conditions. Nothing is fetched from anywhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("svg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saap_edge.bench.document import compared

__all__ = ["render_html"]

_COLOURS = {"dense": "#8a94a6", "pruned": "#1f77d0"}
_MARKERS = {"gguf": "o", "onnx": "s"}
_STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a6", "axes.labelcolor": "#6b7585", "xtick.color": "#6b7585", "ytick.color": "#6b7585",
    "text.color": "#6b7585", "axes.grid": True, "grid.color": "#8a94a6", "grid.alpha": 0.25,
    "svg.hashsalt": "saap-edge",
}  # fmt: skip


def render_html(report: dict[str, Any]) -> str:
    """The page for a report document (see `report.data`), as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    with matplotlib.rc_context(_STYLE):
        plots = {"frontier": _svg(frontier(report["bench"])), "widths": _svg(widths(report["plan"]))}
    return environment.get_template("template.html.j2").render(
        report=report, pairs=compared(report["bench"]), plots=plots
    )


def frontier(bench: dict[str, Any]) -> Figure:
    """Perplexity against decode speed and against bytes, dense and pruned at every format: is pruning worth it here?"""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, label in zip(axes, ("decode tokens per second (measured)", "file size, MiB"), strict=True):
        _points(axis, bench, by_speed=label.startswith("decode"))
        axis.set_xlabel(label)
        axis.margins(0.12)  # room for the labels
    axes[0].set_ylabel("perplexity (lower is better)")
    handles = [axes[0].plot([], [], "D", color=colour, label=f"{role}")[0] for role, colour in _COLOURS.items()] + [
        axes[0].plot([], [], marker, color="#6b7585", mfc="none", label=kind)[0] for kind, marker in _MARKERS.items()
    ]
    axes[1].legend(handles=handles, frameon=False, loc="best")
    return figure


def _points(axis: Axes, bench: dict[str, Any], by_speed: bool) -> None:
    for pair in compared(bench):
        kind, _, quantisation = pair["candidate"]["format"].partition("-")
        xs, ys = [], []
        for side, colour in zip(("base", "candidate"), _COLOURS.values(), strict=True):
            metrics = pair[side]["metrics"]
            if metrics["perplexity"] is None:
                continue
            x = metrics["decode_tok_s"]["median"] if by_speed else metrics["file_bytes"] / 2**20
            if by_speed:
                low, high = metrics["decode_tok_s"]["low"], metrics["decode_tok_s"]["high"]
                axis.plot([low, high], [metrics["perplexity"]] * 2, color=colour, linewidth=1)
            axis.plot(x, metrics["perplexity"], _MARKERS[kind], color=colour, markersize=6)
            axis.annotate(
                quantisation,
                (x, metrics["perplexity"]),
                xytext=(5, 5 if kind == "gguf" else -11),
                textcoords="offset points",
                fontsize=8,
            )
            xs.append(x)
            ys.append(metrics["perplexity"])
        if len(xs) == 2:
            axis.plot(xs, ys, color="#8a94a6", linewidth=0.8, alpha=0.5, zorder=0)


def widths(plan: dict[str, Any]) -> Figure:
    """KV heads and FFN width of every layer: before as an outline, after filled."""
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    layers = [layer["layer"] for layer in plan["layers"]]
    for axis, name, title in zip(axes, ("kv_heads", "ffn"), ("kv heads", "FFN width"), strict=True):
        before, after = ([layer[name][side] for layer in plan["layers"]] for side in (0, 1))
        axis.bar(layers, before, color="none", edgecolor=_COLOURS["dense"], linewidth=1)
        axis.bar(layers, after, color=_COLOURS["pruned"], alpha=0.85)
        axis.set_xlabel("layer")
        axis.set_ylabel(title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _svg(figure: Figure) -> str:
    """The figure as inline SVG, without the XML head and without a date (the same report gives the same page)."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
