"""What an ONNX folder takes of memory in ONNX Runtime, over its size, and how fast it decodes: which settings help.

    python benchmarks/memory_onnx.py --shapes smollm2-135m qwen2.5-0.5b --out benchmarks/results/memory-onnx.json
    python benchmarks/memory_onnx.py --folders OUT/onnx/int4 …

ONNX Runtime maps model.onnx.data, and packs the matrices into the order in which its kernels read them: memory that
the kernel cannot drop, beside mapped pages that it can. Ways: as saap-edge's engine computes, but for huge pages
(*plain*): prompts in pieces of 64 tokens, and no buffer kept for a later layer; *reuse*, with buffers kept, as ONNX
Runtime does by default; *whole*, with whole prompts, too, as its users do; then as plain, but: without its arena;
with an allocator of their own for packed matrices; mapped pages given back after loading (*dropped*); glibc asked for
huge pages; filled pages put into huge ones after loading, as saap-edge's engine does (*collapsed*); and a folder whose
file holds the packed matrices, which ONNX Runtime wrote before on the same processor (*prepacked*): they are mapped
then, too. Every measurement has a process of its own. *Peak* is its highest resident memory less that before the
folder was opened, *held* the most that the kernel cannot drop, while loading or after the steps, both less what the KV
cache took, over the folder's model files. The ways take turns: the ratio of decode speeds, by CPU time of steps, is the
median of turns, with the lowest and highest. All ways must give the same tokens. Shapes have random weights, dense and
with half of their widths removed. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from memory_onnx_child import DATA
from result import fill, publish
from rich.console import Console
from shapes import SHAPES, dense_model, pruned_model, random_widths, write_model

from saap_edge.exporting.onnx import write_onnx
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.machine.pages import HUGE_PAGES

WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "plain": ("plain", {}), "reuse": ("reuse", {}), "whole": ("whole", {}), "no arena": ("no arena", {}),
    "own allocator": ("own allocator", {}), "dropped": ("dropped", {}),
    "glibc's huge pages": ("plain", HUGE_PAGES), "collapsed": ("collapsed", {}),
    "prepacked": ("prepacked", {}),
}  # fmt: skip
SHOWN = ("whole", "reuse", "plain", "no arena", "glibc's huge pages", "collapsed", "prepacked")  # in the table
FASTER = ("reuse", "glibc's huge pages", "collapsed", "prepacked")
REMOVED = (0.0, 0.5)
MIB = 2**20
console = Console(width=150, stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=Path, nargs="*", default=[])
    parser.add_argument("--shapes", nargs="*", default=[], choices=SHAPES)
    parser.add_argument("--formats", nargs="+", default=["int4 32", "int4 128", "int8 32"], help="and inputs a scale")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 512])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024])
    parser.add_argument("--steps", type=int, default=48, help="tokens that are decoded")
    parser.add_argument("--turns", type=int, default=5, help="at the first prompt and context; elsewhere one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    parser.add_argument("--show", type=Path, help="a result of before: fill the pages with it, measure nothing")
    args = parser.parse_args()
    if args.show:
        for page in args.pages:
            fill(page, "memory onnx", table(json.loads(args.show.read_text(encoding="utf-8"))["rows"]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name, folder in folders(args, Path(work)):
            for row in measured(name, folder, args):
                rows.append(row)
                console.print(" | ".join(cells_of(row)), markup=False)
    for page in args.pages:
        fill(page, "memory onnx", table(rows))
    conditions = {"threads": args.threads, "steps": args.steps}
    publish({"benchmark": "memory_onnx", "machine": machine_facts(), "versions": versions(), **conditions,
             "rows": rows}, args.out)  # fmt: skip


def folders(args: argparse.Namespace, work: Path) -> Iterator[tuple[str, Path]]:
    """(name, folder) of all that is measured, each a copy with a prepacked folder inside; gone after its turn."""
    for path in args.folders:
        shutil.copytree(path, work / "copy")
        yield path.name, prepacked(work / "copy")
        shutil.rmtree(work / "copy")
    for name in args.shapes:
        dense = dense_model(SHAPES[name], max(args.contexts))
        for removed in REMOVED:
            model = pruned_model(dense, random_widths(SHAPES[name], removed)) if removed else dense
            source = work / f"{name}-{removed:g}"
            write_model(model, source)
            for form in args.formats:
                kind, group = form.split()
                out = work / f"{source.name}-{kind}-{group}"
                write_onnx(source, out, kind, int(group))
                yield f"{name} {f'without {removed:.0%}' if removed else 'dense'} {kind}, {group}", prepacked(out)
                shutil.rmtree(out)


def prepacked(folder: Path) -> Path:
    """The folder, after ONNX Runtime wrote its packed matrices into one inside."""
    inside = folder / "prepacked"
    inside.mkdir()
    shutil.copyfile(folder / "genai_config.json", inside / "genai_config.json")
    run(folder, "write", {}, 1, 64, 16, 1)
    return folder


def measured(name: str, folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every prompt and context that fit."""
    size = sum((folder / file).stat().st_size for file in ("model.onnx", DATA))
    written = sum(file.stat().st_size for file in (folder / "prepacked").glob("model.onnx*"))
    for context in args.contexts:
        for prompt in args.prompts:
            if prompt + args.steps > context:
                continue
            first = (context, prompt) == (args.contexts[0], args.prompts[0])
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for turn in range(args.turns if first else 1):
                for way in list(WAYS)[:: 1 if turn % 2 else -1]:
                    mode, environment = WAYS[way]
                    found[way].append(run(folder, mode, environment, args.threads, context, prompt, args.steps))
            if len({str(each["tokens"]) for runs in found.values() for each in runs}) > 1:
                raise SystemExit(f"{name}: the ways gave different tokens")
            row = {"name": name, "file_bytes": size, "prepacked_bytes": written, "context": context, "prompt": prompt}
            used = (prompt + args.steps) / context
            yield row | {way: summary(runs, found["plain"], size, used) for way, runs in found.items()}


def run(folder: Path, mode: str, environment: dict[str, str], *numbers: int) -> dict[str, Any]:
    child = str(Path(__file__).with_name("memory_onnx_child.py"))
    command = [sys.executable, child, str(folder), mode, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def summary(runs: list[dict[str, Any]], plain: list[dict[str, Any]], size: int, used: float) -> dict[str, Any]:
    """Of several processes the medians. The engine's cache takes memory only where it was written: `used` of it."""
    middle = {name: median(run[name] for run in runs) for name in runs[0] if name != "tokens"}
    in_mib = {f"{name}_mib": round(middle[name] / MIB, 1) for name in ("base", "loaded", "after", "peak", "anonymous")}
    ratios = sorted(other["decode_cpu_s"] / one["decode_cpu_s"] for one, other in zip(runs, plain, strict=True))
    faster = [round(value, 3) for value in (median(ratios), ratios[0], ratios[-1])] if len(runs) > 1 else None
    kv = middle["kv"] * used
    return in_mib | {
        "kv_mib": round(kv / MIB, 1), "peak_over": round((middle["peak"] - kv) / size, 3),
        "held_over": round(max(middle["anonymous"] - kv, middle["loading"]) / size, 3),
        "load_s": round(middle["load_s"], 2),
        "decode_cpu_ms": round(1e3 * middle["decode_cpu_s"], 2), "faster": faster,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Of the ways that differ: peak and held memory over the file, and decode speed over plain."""
    columns = ["folder", "MiB", "prompt", *(f"{way}: peak / held" for way in SHOWN), "load: prepacked, over plain"]
    columns += [f"decode: {way}" for way in FASTER]
    lines = [columns, ["---"] * len(columns), *map(cells_of, rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def cells_of(row: dict[str, Any]) -> list[str]:
    ratios = [row[way]["faster"] for way in FASTER]
    return [
        row["name"], f"{row['file_bytes'] / MIB:.1f}", str(row["prompt"]),
        *(f"{row[way]['peak_over']:.2f} / {row[way]['held_over']:.2f}" for way in SHOWN),
        f"{row['prepacked']['load_s'] / row['plain']['load_s']:.2f}",
        *(f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "" for ratio in ratios),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
