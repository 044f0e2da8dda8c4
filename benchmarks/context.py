"""Decode speed and memory as functions of the context, dense and pruned, in both runtimes.

    python benchmarks/context.py --out benchmarks/results/context.json --plot docs/context.svg

Random weights in the shape of a known model, pruned at random non-uniform widths. At every context the cache is filled
with that many tokens, dense and pruned then decode by turns, each in a child process of its own. The floor
is what one thread needs to read the bytes of such a token (weights, and keys and values of the context) on this
machine. On a machine that others use, the clock says more of them than of the context: tokens per second of CPU time
stand beside. Then a long generation: from the first context on to --long tokens, step by step, and the steps around
every context beside those measured there. About 8 minutes on an idle core. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from result import publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, dense_model, pruned_model, random_widths, write_model
from speed import export

from saap_edge.engines.worker import Worker
from saap_edge.measuring.contexts import random_tokens
from saap_edge.measuring.measure import BenchConditions, Subject, measure
from saap_edge.probe.board import measure_bandwidth

matplotlib.use("svg")
from matplotlib.figure import Figure

FORMATS = ("gguf-q4_0", "onnx-int4")
COLOURS = {"dense": "#8a94a6", "pruned": "#1f77d0"}
NEAR = 16  # steps of the long generation before a context that stand for it
console = Console(width=120, stderr=True)


def write_artifacts(args: argparse.Namespace, scratch: Path) -> list[Subject]:
    """Dense and pruned in every format."""
    shape = SHAPES[args.shape]
    dense = dense_model(shape, 2 * max(args.contexts))
    pruned = pruned_model(dense, random_widths(shape, args.ratio))
    folders = {name: write_model(m, scratch / f"model-{name}") for name, m in (("dense", dense), ("pruned", pruned))}
    found = export(folders, scratch, args.formats, 32)
    return [found[name][kind] for kind in args.formats for name in found]


def floor_tok_s(size: int) -> float:
    """Tokens a second of which one thread can read that many bytes each, caches as they are there."""
    return measure_bandwidth(max(1, size >> 20), rounds=9)[1] * 1e9 / size


def long_generation(subject: Subject, args: argparse.Namespace) -> dict[int, float]:
    """Tokens per second of CPU time before every context but the first, in one generation from the first on."""
    first = min(args.contexts)
    if args.long <= first:
        return {}
    with Worker(subject.engine, subject.path, args.threads, args.long) as worker:
        steps = worker.time(random_tokens(worker, first), args.long - first)["decode_cpu_s"]
    return {
        context: float(1 / np.median(steps[context - first - NEAR : context - first]))
        for context in args.contexts
        if first < context <= args.long
    }


def rows_of(document: dict[str, Any], generated: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    ratios = {(c["candidate"], row["context"]): row for c in document["comparisons"] for row in c["contexts"]}
    rows = []
    for artifact in document["artifacts"]:
        for row in artifact["metrics"]["contexts"]:
            decode, ratio = row["decode_tok_s"], ratios.get((artifact["name"], row["context"]))
            long = generated.get(artifact["name"], {}).get(row["context"])
            found = {
                "format": artifact["format"], "role": artifact["role"], "context": row["context"],
                **{name: round(decode[name], 2) for name in ("median", "low", "high")},
                "floor_tok_s": round(floor_tok_s(row["bytes_per_token"]), 1),
                "tok_per_cpu_s": round(row["tok_per_cpu_s"], 2), "long_tok_per_cpu_s": long and round(long, 2),
                "bytes_per_token": row["bytes_per_token"],
                "kv_bytes": row["kv_bytes"], "peak_rss_mib": round(row["peak_rss_mib"], 1),
                "pss_mib": row["pss_mib"] and round(row["pss_mib"], 1),
            }  # fmt: skip
            if ratio:
                found |= {
                    "speedup": {key: round(ratio["decode_tok_s"][key], 4) for key in ("ratio", "low", "high")},
                    "ideal": round(ratio["ideal_decode_ratio"], 4),
                }
            rows.append(found)
    return rows


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    columns = (
        "format",
        "context",
        "tok/s",
        "tok/CPU s",
        "long",
        "floor",
        "speed-up [95 %]",
        "ideal",
        "RSS MiB",
        "PSS",
        "KV MiB",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "format" else "right")
    for row in rows:
        long, speedup = row["long_tok_per_cpu_s"], row.get("speedup")
        table.add_row(
            f"{row['role']} {row['format']}", str(row["context"]), f"{row['median']:.1f}",
            f"{row['tok_per_cpu_s']:.1f}", f"{long:.1f}" if long else "", f"{row['floor_tok_s']:.0f}",
            f"{speedup['ratio']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]" if speedup else "",
            f"{row['ideal']:.2f}" if speedup else "", f"{row['peak_rss_mib']:.0f}", f"{row['pss_mib'] or 0:.0f}",
            f"{row['kv_bytes'] / 2**20:.1f}",
        )  # fmt: skip
    console.print(table)


def plot(rows: list[dict[str, Any]], title: str, out: Path) -> None:
    """Speed with its floor on top, memory below, a column a format."""
    formats = list(dict.fromkeys(row["format"] for row in rows))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "saap-edge", "axes.grid": True,
                                "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}):  # fmt: skip
        figure = Figure(figsize=(10, 7), layout="constrained")
        figure.suptitle(title, fontsize=10)
        axes = figure.subplots(2, len(formats), squeeze=False, sharex=True)
        for column, kind in enumerate(formats):
            speed, memory = axes[0][column], axes[1][column]
            for role, colour in COLOURS.items():
                points = [row for row in rows if row["format"] == kind and row["role"] == role]
                x = [row["context"] for row in points]
                y = [row["median"] for row in points]
                errors = [[p["median"] - p["low"] for p in points], [p["high"] - p["median"] for p in points]]
                speed.errorbar(x, y, errors, fmt="o-", color=colour, label=f"{role}, measured", markersize=4)
                speed.plot(x, [p["tok_per_cpu_s"] for p in points], "s-", color=colour, markersize=3, alpha=0.5,
                           label=f"{role}, per second of CPU time")  # fmt: skip
                speed.plot(x, [p["floor_tok_s"] for p in points], "--", color=colour, label=f"{role}, reading only")
                memory.plot(x, [p["peak_rss_mib"] for p in points], "o-", color=colour, label=f"{role}, peak RSS",
                            markersize=4)  # fmt: skip
                memory.plot(x, [p["kv_bytes"] / 2**20 for p in points], ":", color=colour, label=f"{role}, KV cache")
            speed.set_title(kind, fontsize=10)
            speed.set_ylim(bottom=0)
            memory.set_ylim(bottom=0)
            memory.set_xlabel("context, tokens")
        axes[0][0].set_ylabel("decode, tokens a second")
        axes[1][0].set_ylabel("memory, MiB")
        for row_of_axes in axes:
            row_of_axes[-1].legend(frameon=False, fontsize=8)
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-110m")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--ratio", type=float, default=0.35, help="share removed (default 0.35)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode", type=int, default=16, help="tokens decoded a round (default 16)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--long", type=int, default=2048, help="tokens of the long generation (default 2048; 0: none)")
    parser.add_argument("--plot", type=Path, help="SVG file to draw into")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    contexts = tuple(sorted(args.contexts))
    conditions = BenchConditions(args.threads, 64, args.decode, args.rounds, contexts=contexts)
    with tempfile.TemporaryDirectory(prefix="saap-edge-context-") as scratch:
        with console.status("building and exporting"):
            subjects = write_artifacts(args, Path(scratch))
        pairs = [(dense.name, pruned.name) for dense, pruned in zip(subjects[::2], subjects[1::2], strict=True)]
        with console.status("measuring at every context"):
            document = measure(subjects, pairs, conditions).as_dict()
        with console.status("generating"):
            generated = {subject.name: long_generation(subject, args) for subject in subjects}
    rows = rows_of(document, generated)
    title = f"{args.shape}, random weights, {args.ratio:.0%} removed; {args.threads} thread(s), {args.rounds} rounds"
    show(rows, title)
    if args.plot:
        plot(rows, f"{title}; {document['machine']['cpu']}", args.plot)
    result = {
        "benchmark": "context", "shape": f"{args.shape}, random weights", "ratio": args.ratio,
        "machine": document["machine"], "conditions": document["conditions"], "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
