"""What computing fewer tokens of a prompt at once saves and costs: memory and the speed of prompts.

    python benchmarks/ubatch.py --model FILE.gguf ONNX/int4 --out benchmarks/results/ubatch.json
    python benchmarks/ubatch.py --show benchmarks/results/ubatch.json --pages docs/memory.md

GGUF files run in llama.cpp, ONNX folders in ONNX Runtime. Memory: the highest of a process of its own that reads the
prompt and decodes, less that before the artifact was opened, and the part of it that the kernel cannot drop. *Work* is
what a token of the micro-batch takes of that, by the largest and the smallest number, beside what `saap-edge predict`
counts. Speed: CPU time of all threads by turns against the first number, the median with the lowest and highest. Ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from result import fill, publish
from rich.console import Console
from turns import by_turns, child, engine_of, told

from saap_edge.engines.options import EngineOptions
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.prediction.cost import artifact_cost

MIB = 2**20
CHILDREN = {True: ("memory_child.py", "auto"), False: ("memory_onnx_child.py", "collapsed")}  # by: is it a file?


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", help="GGUF files and ONNX folders")
    parser.add_argument("--numbers", type=int, nargs="+", default=[512, 256, 128, 64, 32])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="more than one needs an idle machine: waiting counts")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    parser.add_argument("--show", type=Path, help="a result of before: show it, measure nothing")
    args = parser.parse_args()
    if args.show:
        return show(json.loads(args.show.read_text(encoding="utf-8")), args.pages)
    if not args.model:
        parser.error("--model is needed")
    conditions = {name: getattr(args, name) for name in ("prompt", "steps", "turns", "threads")}
    result = {
        "benchmark": "ubatch", "machine": machine_facts(), "versions": versions(), **conditions,
        "models": [measured(model, args) for model in args.model],
    }  # fmt: skip
    show(result, args.pages)
    publish(result, args.out)


def measured(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What each number takes and gives, of one artifact."""
    context, (script, way) = args.prompt + args.steps, CHILDREN[model.is_file()]
    memory = {
        number: child(script, model, way, args.threads, context, args.prompt, args.steps, "--ubatch", number)
        for number in args.numbers
    }
    ways = {str(number): (model, EngineOptions(ubatch=number)) for number in args.numbers}
    speed = by_turns(ways, args.threads, context, args.steps, args.turns)
    rows = [
        {"ubatch": number, "peak_bytes": memory[number]["peak"], "held_bytes": memory[number]["anonymous"],
         **speed[str(number)]}
        for number in args.numbers
    ]  # fmt: skip
    held = {row["ubatch"]: row["held_bytes"] for row in rows}
    most, least, cost = max(held), min(held), artifact_cost(model)
    return {
        "model": model.name, "engine": engine_of(model), "file_bytes": cost.file_bytes, "rows": rows,
        "work_bytes": round((held[most] - held[least]) / (most - least)),
        "predicted_work_bytes": cost.batch_bytes + 6 * context if cost.batch_bytes else None,
    }  # fmt: skip


def show(result: dict[str, Any], pages: list[Path]) -> None:
    columns = ["artifact", "runtime", "micro-batch", "memory, MiB", "of it held, MiB", "prompts"]
    cells = [
        [model["model"], model["engine"], str(row["ubatch"]), f"{row['peak_bytes'] / MIB:.1f}",
         f"{row['held_bytes'] / MIB:.1f}", told(row["prefill"])]
        for model in result["models"] for row in model["rows"]
    ]  # fmt: skip
    lines = ["| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]]
    console = Console(width=160, stderr=True)
    for line in lines:
        console.print(line, markup=False)
    for model in result["models"]:
        console.print(f"{model['model']}: work space of a token: {model['work_bytes']} bytes, predicted "
                      f"{model['predicted_work_bytes']}")  # fmt: skip
    for page in pages:
        fill(page, "ubatch", lines)


if __name__ == "__main__":
    main()
