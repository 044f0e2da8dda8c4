"""The report's pictures as matplotlib figures, as wide as a phone. A page puts them side by side."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saap_edge.documents.bench import BenchedArtifact
from saap_edge.documents.measured import Percentiles, Summary
from saap_edge.documents.plan import Plan
from saap_edge.formats import KINDS, described, kind_of

__all__ = ["Dot", "both_widths", "depths", "frontier", "latency", "styled", "svg", "widths"]

DENSE, PRUNED, INK = "#8a94a6", "#1f77d0", "#6b7585"
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (10, 3)), (0, (1, 4)))
_SIZE = (4.6, 3.6)
_SPAN = ("median", "low", "high")
_STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": DENSE, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "text.color": INK, "axes.grid": True, "grid.color": DENSE, "grid.alpha": 0.25,
    "svg.hashsalt": "saap-edge",
}  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """An artifact in the picture of the frontier.

    Attributes:
        label: text beside it.
        kind: kind of its format, which decides its mark.
        pruned: it is pruned, not dense.
        x, low, high: speed or size, with its interval.
        y: perplexity.
        front: no other artifact beats it.
    """

    label: str
    kind: str
    pruned: bool
    x: float
    low: float
    high: float
    y: float
    front: bool


@contextmanager
def styled() -> Iterator[None]:
    """A context in which all pictures have the report's style."""
    with matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Figure) -> str:
    """The figure as inline SVG, without XML head. It has no date, so that the same report gives the same page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def frontier(dots: Sequence[Dot], label: str, falling: bool) -> Figure:
    """Perplexity against speed, or with `falling` (less is better) against bytes. A line joins the front."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    front = sorted((dot for dot in dots if dot.front), key=lambda dot: dot.x)
    # As a staircase: there is no artifact between two of the front.
    line: Any = {"where": "post" if falling else "pre", "color": INK, "linewidth": 1, "alpha": 0.7}
    axis.step([dot.x for dot in front], [dot.y for dot in front], **line)
    for dot in dots:
        colour = PRUNED if dot.pruned else DENSE
        axis.plot([dot.low, dot.high], [dot.y, dot.y], color=colour, linewidth=1)
        axis.plot(
            dot.x,
            dot.y,
            kind_of(dot.kind).mark,
            color=colour,
            markersize=6,
            markerfacecolor=colour if dot.front else "none",
        )
    axis.set_xlabel(label)
    axis.set_ylabel("perplexity (lower is better)")
    axis.margins(0.14)  # room for the labels
    shown = dict.fromkeys(dot.kind for dot in dots)
    kinds = dict.fromkeys([*(name for name in KINDS if name in shown), *shown])
    names = [(DENSE, "D", "dense"), (PRUNED, "D", "pruned"), *((INK, kind_of(name).mark, name) for name in kinds)]
    handles = [axis.plot([], [], mark, color=colour, label=name, linestyle="")[0] for colour, mark, name in names]
    figure.legend(handles=handles, frameon=False, fontsize=9, ncols=4, loc="outside upper center")
    _label(figure, axis, dots)
    return figure


def _label(figure: Figure, axis: Axes, dots: Sequence[Dot]) -> None:
    """Put a label beside every dot, clear of other labels and dots. A thin line joins a label that had to move."""
    figure.draw_without_rendering()  # computes the layout, on which the room between dots depends
    texts = [axis.text(dot.x, dot.y, dot.label, fontsize=8.5) for dot in dots]
    line = {"arrowstyle": "-", "color": DENSE, "linewidth": 0.6}
    adjust_text(
        texts, [dot.x for dot in dots], [dot.y for dot in dots], ax=axis, iter_lim=500, expand=(1.15, 1.4),
        arrowprops=line,
    )  # fmt: skip


def widths(plan: Plan, name: str, title: str) -> Figure:
    """One kind of width ("kv_heads" or "ffn") of every layer: before as an outline, after filled."""
    figure = Figure(figsize=(_SIZE[0], 3.0), layout="constrained")
    _widths(figure.subplots(), plan, name, title)
    return figure


def both_widths(plan: Plan) -> bytes:
    """KV heads and FFN widths side by side, as PNG on white: pages that show no SVG, or are dark, show it too."""
    out = io.BytesIO()
    figure = Figure(figsize=(2 * _SIZE[0], 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _widths(left, plan, "kv_heads", "kv heads")
    _widths(right, plan, "ffn", "FFN width")
    figure.savefig(out, format="png", dpi=120, facecolor="white")
    return out.getvalue()


def _widths(axis: Axes, plan: Plan, name: str, title: str) -> None:
    layers = [layer.layer for layer in plan.layers]
    before, after = ([layer[name][side] for layer in plan.layers] for side in (0, 1))
    axis.bar(layers, before, color="none", edgecolor=DENSE, linewidth=1)
    axis.bar(layers, after, color=PRUNED, alpha=0.85)
    axis.set_xlabel("layer")
    axis.set_ylabel(title)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(integer=True))


def latency(artifacts: Sequence[BenchedArtifact]) -> Figure:
    """Milliseconds between tokens of every artifact: median, 95th and 99th percentile."""
    figure = Figure(figsize=(_SIZE[0], 1.0 + 0.32 * len(artifacts)), layout="constrained")
    axis = figure.subplots()
    for place, artifact in enumerate(artifacts):
        if artifact.metrics.itl_ms:
            _whiskers(axis, place, artifact.metrics.itl_ms, PRUNED if artifact.role != "dense" else DENSE)
    axis.set_yticks(range(len(artifacts)), [artifact.name for artifact in artifacts], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("ms between tokens: median ●, 95 % |, 99 % ▸")
    return figure


def depths(artifacts: Sequence[BenchedArtifact], name: str, label: str) -> Figure:
    """A figure against the context, a line for each artifact: "decode_tok_s" with its interval, or "peak_rss_mib"."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    formats = list(dict.fromkeys(entry.format for entry in artifacts))
    lines = {name: _LINES[place % len(_LINES)] for place, name in enumerate(formats)}
    for entry in artifacts:
        rows = entry.metrics.contexts
        # A figure without an interval (memory) gets one of length 0.
        spans = [row[name] if isinstance(row[name], Summary) else Summary(**dict.fromkeys(_SPAN, row[name]))
                 for row in rows]  # fmt: skip
        reach = [[s.median - s.low for s in spans], [s.high - s.median for s in spans]]
        axis.errorbar(
            [row.context for row in rows], [span.median for span in spans], reach, elinewidth=0.8,
            color=DENSE if entry.role == "dense" else PRUNED, **_line(entry.format, lines),
        )  # fmt: skip
    axis.set_xlabel("context, tokens")
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    handles = [
        axis.plot([], [], color=colour, label=role)[0] for colour, role in ((DENSE, "dense"), (PRUNED, "pruned"))
    ]
    handles += [axis.plot([], [], color=INK, label=name, **_line(name, lines))[0] for name in formats]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="outside upper center", handlelength=3)
    return figure


def _line(artifact_format: str, lines: dict[str, Any]) -> dict[str, Any]:
    """How a format is drawn: a line of its own, with the mark of its kind."""
    mark = kind_of(described(artifact_format).kind).mark
    return {"linestyle": lines[artifact_format], "marker": mark, "markersize": 4, "linewidth": 1.2}


def _whiskers(axis: Axes, place: int, itl: Percentiles, colour: str) -> None:
    axis.plot([itl.p50, itl.p99], [place, place], color=colour, linewidth=1.5)
    for name, mark in (("p50", "o"), ("p95", "|"), ("p99", ">")):
        axis.plot(itl[name], place, mark, color=colour, markersize=8 if mark == "|" else 5)
