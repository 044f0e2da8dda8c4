"""What a GGUF file takes of memory in llama.cpp, over its size, and how fast it decodes: mapped, read, in huge pages.

    python benchmarks/memory.py --shapes smollm2-135m qwen2.5-0.5b --out benchmarks/results/memory.json
    python benchmarks/memory.py --files MODEL.gguf …

llama.cpp repacks the matrices of some types as it loads them. Pages of a mapped file stay beside the copy; a file that
is read leaves none, but its memory is in small pages, unless glibc asks for huge ones, or the filled ones are put into
huge ones after loading (*collapsed*, as saap-edge's engine does). Every measurement has a process
of its own. *Peak* is its highest resident memory less that before the file was opened; *anonymous* is the part that the
kernel cannot drop and read again (locked pages included), *pss* the memory at the end with shared pages in part. `over`
is (peak - KV) / file, where KV is that of the whole context. The ways take turns: the ratio of decode speeds, by CPU
time of steps, is the median of turns, with the lowest and highest. Shapes have random weights, dense and with a quarter
and half of their widths removed. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from result import fill, publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, dense_model, pruned_model, random_widths, write_model

from saap_edge.exporting.gguf import write_gguf
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.machine.pages import HUGE_PAGES

WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "mapped": ("mapped", {}), "read": ("read", {}), "read, glibc's huge pages": ("read", HUGE_PAGES),
    "read, collapsed": ("collapsed", {}),
}  # fmt: skip
REMOVED = (0.0, 0.25, 0.5)
MIB = 2**20
console = Console(width=170)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--shapes", nargs="*", default=[], choices=SHAPES)
    parser.add_argument("--formats", nargs="+", default=["q4_0", "q8_0"], help="of shapes: any that saap-edge writes")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 512])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--steps", type=int, default=32, help="tokens that are decoded")
    parser.add_argument("--pairs", type=int, default=5, help="turns at the first prompt and context; elsewhere one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    parser.add_argument("--mark", default="memory", help="the table's name in the pages")
    parser.add_argument("--show", type=Path, help="a result of before: show it, measure nothing")
    args = parser.parse_args()
    if args.show:
        result = json.loads(args.show.read_text(encoding="utf-8"))
        return show(result["rows"], args)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name, path in files(args, Path(work)):
            for row in measured(name, path, args):
                rows.append(row)
                console.print(row, highlight=False)
    show(rows, args)
    conditions = {"threads": args.threads, "steps": args.steps}
    publish({"benchmark": "memory", "machine": machine_facts(), "versions": versions(), **conditions, "rows": rows},
            args.out)  # fmt: skip


def files(args: argparse.Namespace, work: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of all that is measured; a file of a shape is gone after its turn."""
    yield from ((path.name, path) for path in args.files)
    for name in args.shapes:
        shape = SHAPES[name]
        dense = dense_model(shape, max(args.contexts))
        for removed in REMOVED:
            model = pruned_model(dense, random_widths(shape, removed)) if removed else dense
            folder = work / f"{name}-{removed:g}"
            write_model(model, folder)
            for kind in args.formats:
                path = work / f"{folder.name}-{kind}.gguf"
                write_gguf(folder, path, kind)
                yield f"{name} without {removed:.0%} {kind}" if removed else f"{name} dense {kind}", path
                path.unlink()


def measured(name: str, path: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every prompt and context that fit."""
    size = path.stat().st_size
    for context in args.contexts:
        for prompt in args.prompts:
            if prompt + args.steps > context:
                continue
            first = (context, prompt) == (args.contexts[0], args.prompts[0])
            found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for turn in range(args.pairs if first else 1):
                for way in list(WAYS)[:: 1 if turn % 2 else -1]:
                    found[way].append(run(path, way, args.threads, context, prompt, args.steps))
            row = {"name": name, "file_bytes": size, "context": context, "prompt": prompt}
            yield row | {way: summary(runs, found["mapped"], size) for way, runs in found.items()}


def run(path: Path, way: str, *numbers: int) -> dict[str, float]:
    mode, environment = WAYS[way]
    command = [sys.executable, str(Path(__file__).with_name("memory_child.py")), str(path), mode, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def summary(runs: list[dict[str, float]], mapped: list[dict[str, float]], size: int) -> dict[str, Any]:
    """Of several processes the medians; of memory they differ by single pages. `faster` needs several turns."""
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    in_mib = {f"{name}_mib": round(middle[name] / MIB, 1) for name in ("base", "peak", "pss", "anonymous", "kv")}
    ratios = sorted(other["decode_cpu_s"] / one["decode_cpu_s"] for one, other in zip(runs, mapped, strict=True))
    faster = [round(value, 3) for value in (median(ratios), ratios[0], ratios[-1])] if len(runs) > 1 else None
    return in_mib | {
        "over": round((middle["peak"] - middle["kv"]) / size, 3), "load_s": round(middle["load_s"], 2),
        "decode_cpu_ms": round(1e3 * middle["decode_cpu_s"], 2), "faster": faster,
    }  # fmt: skip


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The table on the terminal and in pages: memory over file less KV, and decode speed over that of mapped."""
    ways = [name for name, found in rows[0].items() if isinstance(found, dict)]
    columns = ["file", "MiB", "context", "prompt", "KV, MiB", *(f"{way}, x file" for way in ways)]
    columns += [f"decode: {way}" for way in ways[1:]]
    cells = [cells_of(row, ways) for row in rows]
    found = Table(*columns, title="memory of a process in llama.cpp, less its base and its KV cache, over the file")
    for line in cells:
        found.add_row(*line)
    console.print(found)
    lines = ["| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]]
    for page in args.pages:
        fill(page, args.mark, lines)


def cells_of(row: dict[str, Any], ways: list[str]) -> list[str]:
    ratios = [row[way]["faster"] for way in ways[1:]]
    return [
        row["name"], f"{row['file_bytes'] / MIB:.1f}", str(row["context"]), str(row["prompt"]),
        f"{row['mapped']['kv_mib']:.1f}", *(f"{row[way]['over']:.2f}" for way in ways),
        *(f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "" for ratio in ratios),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
