"""How fast llama.cpp multiplies by each type of GGUF file: prefill and decode against Q4_0, by turns.

    python benchmarks/gguf_types.py --model FOLDER --out benchmarks/results/gguf-types.json

llama.cpp repacks the matrices of some types as it loads them, for kernels that multiply several rows at once; a type
without such a kernel is slower, whatever its bits. CPU time, one thread; the ratio is the median of turns, with the
lowest and highest. Types that llama.cpp makes need calibration text to be good, not to be timed: they have none here.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from result import publish
from rich.console import Console
from rich.table import Table
from turns import by_turns, told

from saap_edge.engines.options import AS_IT_IS
from saap_edge.exporting.write import export_artifacts
from saap_edge.formats import format_of
from saap_edge.machine.facts import machine_facts, versions

TYPES = ("gguf-q4_0", "gguf-iq4_nl", "gguf-q4_1", "gguf-q8_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--formats", nargs="+", default=TYPES, help="the first is what others are compared with")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        export_artifacts(args.model, Path(work), tuple(args.formats), "dense", {}, lambda name: None)
        ways = {name: (Path(work) / format_of(name).path, AS_IT_IS) for name in args.formats}
        sizes = {name: path.stat().st_size for name, (path, _) in ways.items()}
        found = by_turns(ways, args.threads, args.prompt + args.steps, args.steps, args.turns)
    table = Table("format", "MiB", "prefill", "decode", title=f"speed over that of {args.formats[0]}")
    for name, row in found.items():
        table.add_row(name, f"{sizes[name] / 2**20:.1f}", told(row["prefill"]), told(row["decode"]))
    Console(width=120).print(table)
    rows = [{"format": name, "file_bytes": sizes[name], **row} for name, row in found.items()]
    conditions = {name: getattr(args, name) for name in ("prompt", "steps", "turns", "threads")}
    publish({"benchmark": "gguf_types", "machine": machine_facts(), "versions": versions(), **conditions, "rows": rows},
            args.out)  # fmt: skip


if __name__ == "__main__":
    main()
