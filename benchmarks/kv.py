"""What keys and values in 8 and 4 bits cost and save in llama.cpp: quality, speed and memory by context.

    python benchmarks/kv.py --models bundled=saap_edge/reference/wikitext-llama SmolLM2=FOLDER --out kv.json
    python benchmarks/kv.py --show benchmarks/results/kv.json --pages docs/memory.md

A model is a GGUF file, or a Hugging Face folder, which is written in `--format`. Quality: windows as long as the
context, of the package's test text, run through one file with each type of cache; perplexity, and the mean KL
divergence from the answers with F16, in nats a token. Speed: prefill of a prompt as long as the context, and decoding
behind it, in CPU time, by turns: the ratio to F16 is the median of turns, with the lowest and highest. Memory: the
highest of a process of its own, less that before the file was opened. A model that holds fewer tokens than a context
leaves it out. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from result import fill, publish
from rich.console import Console
from rich.table import Table
from turns import by_turns, child, told

from saap_edge.artifacts import context_of
from saap_edge.engines.options import KV_TYPES, EngineOptions, kv_bytes
from saap_edge.exporting.gguf import write_gguf
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.prediction.cost import artifact_cost
from saap_edge.recipe import bundled_text

MIB = 2**20
console = Console(width=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help="NAME=FILE.gguf or NAME=FOLDER")
    parser.add_argument("--format", default="q4_0", help="of folders")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--steps", type=int, default=32, help="tokens that are decoded")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of text, at least one window of each context")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--after", type=Path, help="a result of before, whose rows come first")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    parser.add_argument("--show", type=Path, help="a result of before: show it, measure nothing")
    args = parser.parse_args()
    if args.show:
        return show(json.loads(args.show.read_text(encoding="utf-8"))["rows"], args.pages)
    rows = json.loads(args.after.read_text(encoding="utf-8"))["rows"] if args.after else []
    with tempfile.TemporaryDirectory() as work:
        for told in args.models:
            name, _, place = told.partition("=")
            path = Path(place)
            if path.is_dir():
                path = Path(work) / f"{name}.gguf"
                write_gguf(Path(place), path, args.format)
            for context in args.contexts:
                if context <= context_of(path):
                    rows += measured(name, path, context, args)
                    console.print(*rows[-len(KV_TYPES) :], sep="\n", highlight=False)
    show(rows, args.pages)
    conditions = {name: getattr(args, name) for name in ("threads", "steps", "turns", "format")}
    publish({"benchmark": "kv", "machine": machine_facts(), "versions": versions(), **conditions, "rows": rows},
            args.out)  # fmt: skip


def measured(name: str, path: Path, context: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every type of cache."""
    ways = {kv: (path, EngineOptions(kv=kv)) for kv in KV_TYPES}
    quality, speed = qualities(path, context, args), by_turns(ways, args.threads, context, args.steps, args.turns)
    elements = artifact_cost(path).kv_elements
    rows = []
    for kv in KV_TYPES:
        memory = child("memory_child.py", path, "auto", args.threads, context, context - args.steps, args.steps,
                       "--kv", kv)  # fmt: skip
        rows.append({
            "name": name, "context": context, "kv": kv, "file_bytes": path.stat().st_size,
            "kv_bytes": context * kv_bytes(elements, kv), "peak_bytes": memory["peak"],
            "held_bytes": memory["anonymous"], **quality[kv], **speed[kv],
        })  # fmt: skip
    return rows


def qualities(path: Path, context: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Perplexity and divergence by type; the windows are the same for all."""
    windows = max(1, args.tokens // context)
    found: dict[str, dict[str, float]] = child(
        "kv_child.py", path, args.threads, context, windows, str(bundled_text("test"))
    )
    return found


def show(rows: list[dict[str, Any]], pages: list[Path]) -> None:
    columns = ["model", "context", "KV cache", "KV, MiB", "memory, MiB", "prefill", "decode", "perplexity",
               "KL from f16, nats"]  # fmt: skip
    cells = [cells_of(row) for row in rows]
    found = Table(*columns, title="keys and values in fewer bits; speeds are ratios to f16")
    for line in cells:
        found.add_row(*line)
    console.print(found)
    lines = ["| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]]
    for page in pages:
        fill(page, "kv", lines)


def cells_of(row: dict[str, Any]) -> list[str]:
    speeds = (told(row[name]) for name in ("prefill", "decode"))
    return [
        row["name"], str(row["context"]), row["kv"], f"{row['kv_bytes'] / MIB:.1f}", f"{row['peak_bytes'] / MIB:.0f}",
        *(speeds if KV_TYPES[row["kv"]].rounded else ("1", "1")), f"{row['perplexity']:.2f}",
        f"{row['kl']:.4f}" if KV_TYPES[row["kv"]].rounded else "0",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
