"""The picture of a result of rivals.py: perplexity over file size, decode speed, prefill speed and memory.

    python benchmarks/rivals_picture.py benchmarks/results/rivals-NAME.json --out docs/rivals.svg

Every file is a point, dense ones as circles and pruned ones as squares. The best corner is named below each
panel.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure
from result import fill

PANELS: dict[str, Callable[[dict[str, Any]], float]] = {
    "file, MB (best: lower left)": lambda row: row["file_bytes"] / 1e6,
    "decode speed over dense Q4_0 (best: lower right)": lambda row: row["decode_ratio"]["ratio"],
    "prefill speed over dense Q4_0 (best: lower right)": lambda row: row["prefill_ratio"]["ratio"],
    "peak memory, MiB (best: lower left)": lambda row: row["peak_rss_mib"],
}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "saap-edge", "axes.grid": True, "grid.alpha": 0.25, "font.size": 8,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="what rivals.py wrote with --out")
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    arguments = parser.parse_args()
    rows = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"]
    for page in arguments.pages:
        fill(page, "rivals", table(rows))
    with matplotlib.rc_context(STYLE):
        draw(rows).savefig(arguments.out, metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: quality and speed over dense Q4_0 of every file."""
    lines = ["| file | MB | perplexity | llama-perplexity | decode [95 %] | prefill |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = row["decode_ratio"]
        decode = "{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**ratio)
        figures = f"{row['perplexity']:.1f} | {row['llama_perplexity']:.1f} | {decode}"
        size, prefill = f"{row['file_bytes'] / 1e6:.1f}", f"{row['prefill_ratio']['ratio']:.2f}"
        lines.append(f"| {row['model']} {row['type']} | {size} | {figures} | {prefill} |")
    return lines


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Four panels that share perplexity as their vertical axis."""
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for panel, (title, value) in zip(panels.flat, PANELS.items(), strict=True):
        for index, model in enumerate(models):
            mine = [row for row in rows if row["model"] == model]
            points = [value(row) for row in mine], [row["perplexity"] for row in mine]
            panel.plot(*points, "s" if index else "o", color=f"C{index}", markersize=4, label=model)
            for row, x, y in zip(mine, *points, strict=True):
                panel.annotate(row["type"], (x, y), (3, 2), textcoords="offset points", fontsize=6, color=f"C{index}")
        panel.set_xlabel(title)
        panel.set_yscale("log")
        for axis_format in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            axis_format("{x:.0f}")
    for panel in panels[:, 0]:
        panel.set_ylabel("perplexity, test text")
    panels.flat[0].legend()
    return figure


if __name__ == "__main__":
    main()
