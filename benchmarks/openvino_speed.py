"""OpenVINO beside llama.cpp and ONNX Runtime: memory of a process, and CPU time of prompts and of steps.

    python benchmarks/openvino_speed.py --shapes smollm2-135m qwen2.5-0.5b --out benchmarks/results/openvino.json
    python benchmarks/openvino_speed.py --show benchmarks/results/openvino.json --pages docs/openvino.md

Each format runs in a process of its own, with its runtime's defaults, on the same random weights in the shape of a
known model, dense and with a quarter and half of its widths removed. *Peak* is the highest resident memory of a
process that loaded the artifact, read a prompt and decoded. Times are CPU seconds, which other work on the machine
disturbs less than the clock: of one thread they are the same. The formats take turns; a ratio is the median of those
of each turn to the first format, with the lowest and highest. Needs 6 GB of disk and about 10 minutes; ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from result import fill, publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, dense_model, pruned_model, random_widths, write_model

from saap_edge.artifacts import engine_of
from saap_edge.engines.worker import Worker
from saap_edge.exporting.write import export_artifacts
from saap_edge.machine.facts import machine_facts, versions

FORMATS = ("gguf-q4_0", "onnx-int4", "openvino-int4", "openvino-int8")
REMOVED = (0.0, 0.25, 0.5)
MIB = 2**20
console = Console(width=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=[], choices=SHAPES)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    parser.add_argument("--show", type=Path, help="a result of before: show it, measure nothing")
    args = parser.parse_args()
    if args.show:
        return show(json.loads(args.show.read_text(encoding="utf-8"))["rows"], args.pages)
    rows = []
    for name in args.shapes:
        shape = SHAPES[name]
        dense = dense_model(shape)
        for removed in REMOVED:
            model = pruned_model(dense, random_widths(shape, removed)) if removed else dense
            with tempfile.TemporaryDirectory() as work:
                folder, out = write_model(model, Path(work) / "model"), Path(work) / "export"
                out.mkdir()
                manifest = export_artifacts(folder, out, tuple(args.formats), "dense", {}, lambda _: None)
                title = f"{name} without {removed:.0%}" if removed else f"{name} dense"
                rows += measured(title, out, manifest.artifacts, args)
    show(rows, args.pages)
    conditions = {"threads": args.threads, "prompt": args.prompt, "steps": args.steps, "turns": args.turns}
    publish({"benchmark": "openvino_speed", "machine": machine_facts(), "versions": versions(), **conditions,
             "rows": rows}, args.out)  # fmt: skip


def measured(title: str, out: Path, artifacts: list[Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each artifact of a model."""
    tokens, length = list(range(5, 5 + args.prompt)), args.prompt + args.steps
    figures: dict[str, dict[str, list[float]]] = {each.format: {"prompt": [], "step": []} for each in artifacts}
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        workers = {
            each.format: stack.enter_context(Worker(engine_of(each.format), out / each.path, args.threads, length))
            for each in artifacts
        }
        for turn in range(args.turns + 1):
            for name in list(workers)[:: 1 if turn % 2 else -1]:
                begin = cpu_seconds(workers[name])
                timed = workers[name].time(tokens, args.steps)
                spent, steps = cpu_seconds(workers[name]) - begin, sum(timed["decode_cpu_s"])
                if turn == 0:  # of a fresh process, and warms up
                    found[name] = workers[name].memory()
                    continue
                figures[name]["prompt"].append((spent - steps) / args.prompt)
                figures[name]["step"].append(median(timed["decode_cpu_s"]))
    base = figures[artifacts[0].format]
    return [
        {
            "model": title, "format": each.format, "file_mib": round(each.bytes / MIB, 1),
            "peak_mib": round(found[each.format]["peak"] / MIB, 1),
            **{f"{what}_cpu_ms": round(1e3 * median(own), 3) for what, own in figures[each.format].items()},
            **{f"{what}_faster": ratios(own, base[what]) for what, own in figures[each.format].items()},
        } for each in artifacts
    ]  # fmt: skip


def cpu_seconds(worker: Worker) -> float:
    times = psutil.Process(worker._process.pid).cpu_times()
    return float(times.user + times.system)


def ratios(own: list[float], base: list[float]) -> list[float]:
    found = sorted(other / one for one, other in zip(own, base, strict=True))
    return [round(value, 3) for value in (median(found), found[0], found[-1])]


def show(rows: list[dict[str, Any]], pages: list[Path]) -> None:
    """The table on the terminal and in pages."""
    columns = [
        "model",
        "format",
        "file, MiB",
        "peak, MiB",
        "CPU ms a token: prompt",
        "decode",
        "prompt, x",
        "decode, x",
    ]
    cells = [
        [row["model"], row["format"], f"{row['file_mib']:.1f}", f"{row['peak_mib']:.1f}",
         f"{row['prompt_cpu_ms']:.2f}", f"{row['step_cpu_ms']:.2f}",
         *("{:.2f} [{:.2f}, {:.2f}]".format(*row[f"{what}_faster"]) for what in ("prompt", "step"))] for row in rows
    ]  # fmt: skip
    table = Table(*columns, title=f"x: times as fast as {rows[0]['format']}, by CPU time")
    for line in cells:
        table.add_row(*line)
    console.print(table)
    lines = ["| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]]
    for page in pages:
        fill(page, "openvino", lines)


if __name__ == "__main__":
    main()
