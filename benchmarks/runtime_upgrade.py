"""What an upgrade of a runtime costs or brings: the same files in two builds of it, side by side.

    python3.11 -m venv old && old/bin/pip install onnxruntime==1.23.2 numpy 'pydantic>=2.8'
    python benchmarks/runtime_upgrade.py --old old --out benchmarks/results/runtime-upgrade.json

Random weights in the shape of a known model are written in every format. Each file runs by turns in the old environment
and in this one, as `saap-edge bench BUNDLE --against BUNDLE --against-python old` does; then in this one twice, through
an interpreter of its own, which shows what the measurement itself makes of equal builds. Every round has processes of
its own; with --one-pair it has not, and equal builds differ by what their two processes differ by. The gate judges
every ratio (decode and prefill, new over old) against --limit, with looks until it is decided. About 5 minutes on an
idle core. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from result import publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, dense_model, write_model
from speed import export

from saap_edge.documents.bench import Bench
from saap_edge.engines.environment import check_python, find_python
from saap_edge.engines.registry import engine_named
from saap_edge.gating import Budget, judge
from saap_edge.gating.rerun import decides
from saap_edge.machine.facts import machine_facts
from saap_edge.measuring.builds import Build
from saap_edge.measuring.measure import BenchConditions, Subject, measure
from saap_edge.report.bench import render_bench

METRICS = ("decode_vs_baseline", "prefill_vs_baseline")
console = Console(width=160, stderr=True)


def side_by_side(subject: Subject, base: Path, args: argparse.Namespace) -> Bench:
    """The file in this environment beside the one of another interpreter."""
    candidate = replace(subject, name=f"candidate {subject.format}", role="candidate")
    baseline = replace(subject, name=f"baseline {subject.format}", role="baseline", build=Build(python=base))
    conditions = BenchConditions(
        args.threads, args.prompt, args.decode, args.rounds, max_rounds=args.max_rounds, fresh=not args.one_pair
    )
    pair = [(baseline.name, candidate.name)]
    return measure([baseline, candidate], pair, conditions, decided=decides(budget(args), None))


def budget(args: argparse.Namespace) -> Budget:
    return Budget.model_validate({"limits": {metric: {"min": args.limit} for metric in METRICS}})


def row_of(kind: str, what: str, bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """What a pair showed, in a row of the result."""
    [pair] = bench.pairs()
    verdicts = {verdict.metric: verdict.verdict for verdict in judge(bench, budget(args), None)}
    row: dict[str, Any] = {"format": kind, "pair": what, "rounds": pair.ratios.decode_tok_s.rounds}
    for name, metric in (("decode_tok_s", METRICS[0]), ("prefill_tok_s", METRICS[1])):
        ratio = getattr(pair.ratios, name)
        row[name] = {
            "old": round(getattr(pair.base.metrics, name).median, 2),
            "new": round(getattr(pair.candidate.metrics, name).median, 2),
            "ratio": [round(value, 4) for value in (ratio.ratio, ratio.low, ratio.high)], "verdict": verdicts[metric],
        }  # fmt: skip
    row["noise"] = [round(side.noise or 0, 4) for side in pair.sides]
    row["builds"] = [
        {"python": side.runtime.python, "versions": side.runtime.versions, "build": side.runtime.build}
        for side in (pair.base, pair.candidate)
        if side.runtime
    ]
    return row


def show(rows: list[dict[str, Any]], limit: float) -> None:
    table = Table(title=f"new over old [95 %], limit {limit}")
    for column in ("format", "pair", "decode tok/s", "ratio", "verdict", "prefill tok/s", "ratio", "verdict", "rounds"):
        table.add_column(column)
    for row in rows:
        cells = []
        for name in ("decode_tok_s", "prefill_tok_s"):
            found = row[name]
            cells += [f"{found['old']:.0f} => {found['new']:.0f}", "{:.3f} [{:.3f}, {:.3f}]".format(*found["ratio"])]
            cells.append(found["verdict"])
        table.add_row(row["format"], row["pair"], *cells, str(row["rounds"]))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="environment with the other build of the runtime")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--formats", nargs="+", default=["onnx-int4", "onnx-int8"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--decode", type=int, default=32, help="tokens a round")
    parser.add_argument("--rounds", type=int, default=8, help="before the first look")
    parser.add_argument("--max-rounds", type=int, default=32)
    parser.add_argument("--one-pair", action="store_true", help="one pair of processes for all rounds: what not to do")
    parser.add_argument("--limit", type=float, default=0.95, help="least ratio that passes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    old, rows = find_python(args.old), []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = write_model(dense_model(SHAPES[args.shape], args.prompt + args.decode), scratch / "model")
        for kind, subject in export({"dense": source}, scratch, args.formats, 32)["dense"].items():
            check_python(old, engine_named(subject.engine))
            for what, base in (("old and new", old), ("this build twice", Path(sys.executable))):
                bench = side_by_side(subject, base, args)
                for part in render_bench(bench):
                    console.print(part)
                rows.append(row_of(kind, what, bench, args))
    show(rows, args.limit)
    options = {name: value for name, value in vars(args).items() if name not in ("out", "old", "formats")}
    publish({"machine": machine_facts(), **options, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
