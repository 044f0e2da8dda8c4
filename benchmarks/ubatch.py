"""What computing fewer tokens of a prompt at once saves and costs in llama.cpp: memory and the speed of prompts.

    python benchmarks/ubatch.py --model FILE.gguf --out benchmarks/results/ubatch.json
    python benchmarks/ubatch.py --show benchmarks/results/ubatch.json --pages docs/memory.md

Memory: the highest of a process of its own that reads the prompt and decodes, less that before the file was opened, and
the part of it that the kernel cannot drop. *Work* is what a token of the micro-batch takes of that, by the largest and
the smallest number, beside what `saap-edge predict` counts. Speed: CPU time by turns against the first number, the
median with the lowest and highest. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from result import fill, publish
from rich.console import Console
from rich.table import Table
from turns import by_turns, child, told

from saap_edge.engines.options import EngineOptions
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.prediction.cost import artifact_cost

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="GGUF file")
    parser.add_argument("--numbers", type=int, nargs="+", default=[512, 256, 128, 64, 32])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    parser.add_argument("--show", type=Path, help="a result of before: show it, measure nothing")
    args = parser.parse_args()
    if args.show:
        return show(json.loads(args.show.read_text(encoding="utf-8")), args.pages)
    context, rows = args.prompt + args.steps, []
    memory = {
        number: child("memory_child.py", args.model, "auto", args.threads, context, args.prompt, args.steps,
                      "--ubatch", number)
        for number in args.numbers
    }  # fmt: skip
    ways = {str(number): (args.model, EngineOptions(ubatch=number)) for number in args.numbers}
    speed = by_turns(ways, args.threads, context, args.steps, args.turns)
    for number in args.numbers:
        own = {"peak_bytes": memory[number]["peak"], "held_bytes": memory[number]["anonymous"]}
        rows.append({"ubatch": number, **own, **speed[str(number)]})
    held = {row["ubatch"]: row["held_bytes"] for row in rows}
    most, least = max(held), min(held)
    conditions = {name: getattr(args, name) for name in ("prompt", "steps", "turns", "threads")}
    result: dict[str, Any] = {
        "benchmark": "ubatch", "machine": machine_facts(), "versions": versions(), "model": args.model.name,
        "file_bytes": args.model.stat().st_size, **conditions, "rows": rows,
        "work_bytes": round((held[most] - held[least]) / (most - least)),
        "predicted_work_bytes": artifact_cost(args.model).batch_bytes + 6 * context,
    }  # fmt: skip
    show(result, args.pages)
    publish(result, args.out)


def show(result: dict[str, Any], pages: list[Path]) -> None:
    columns = ["micro-batch", "memory, MiB", "of it held, MiB", "prompts"]
    cells = [
        [str(row["ubatch"]), f"{row['peak_bytes'] / MIB:.1f}", f"{row['held_bytes'] / MIB:.1f}", told(row["prefill"])]
        for row in result["rows"]
    ]
    table = Table(*columns, title=f"{result['model']}, a prompt of {result['prompt']}; speed over that of the first")
    for line in cells:
        table.add_row(*line)
    console = Console(width=120)
    console.print(table)
    console.print(f"work space of a token: {result['work_bytes']} bytes, predicted {result['predicted_work_bytes']}")
    for page in pages:
        fill(page, "ubatch", ["| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]])


if __name__ == "__main__":
    main()
