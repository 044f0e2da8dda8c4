"""Random valid plans of all model families: do their GGUF and ONNX files load, and answer as torch does?

    python benchmarks/random_plans.py --out benchmarks/results/random-plans.json
    python benchmarks/random_plans.py --plans 5     # a try, in a minute
    python benchmarks/random_plans.py --families lfm2 --earlier RESULT.json --out RESULT.json    # one more family

Every case is a tiny random model of random shape, pruned by a random plan that the planner could have made: KV groups,
query slots, channels and whole sublayers gone, all layers alike or each its own, biases as repair adds them, rope
scaling, tied or not. tests/exporting/random_plans.py says what is checked, and the test suite runs the first 25 of
these cases of each family. All files run in child processes; a file that kills one is named, and counts as a fault.

The table shows, for every family, format and way of running it, how many files were run, how many models were refused
before a file was there, and the largest error over its tolerance. Takes half an hour of one core; ends with one JSON
line and, if there was a fault, exit code 1. `--out` is written after every family, with those of `--earlier`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from result import publish, save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from saap_edge.families import FAMILIES
from saap_edge.machine.facts import machine_facts, versions
from tests.exporting.random_plans import Outcome, check

BATCH = 20
console = Console(width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=200, help="of each family")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--earlier", type=Path, help="a result whose other families are kept")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found = json.loads(args.earlier.read_text(encoding="utf-8"))["families"] if args.earlier else {}
    for family in args.families:
        found[family] = figures(family, args.plans)
        console.print(table(family, found[family]))
        save(document(found), args.out)
    publish(document(found), args.out)
    sys.exit(any(each["faults"] for each in found.values()))


def figures(family: str, plans: int) -> dict[str, Any]:
    """What was seen of a family's plans."""
    total = Outcome()
    for start in track(range(0, plans, BATCH), family, console=Console(stderr=True)):
        with tempfile.TemporaryDirectory(prefix="saap-edge-plans-") as scratch:
            total.add(check(family, range(start, min(start + BATCH, plans)), Path(scratch)))
    return {
        "plans": plans, "versions": versions(), "files": dict(sorted(total.counts.items())),
        "largest_error_over_tolerance": {way: round(error, 4) for way, error in sorted(total.worst.items())},
        "faults": total.faults,
    }  # fmt: skip


def document(found: dict[str, Any]) -> dict[str, Any]:
    plans = sum(each["plans"] for each in found.values())
    faults = sum(len(each["faults"]) for each in found.values())
    return {
        "benchmark": "random_plans", "machine": machine_facts(), "plans": plans, "faults": faults,
        "families": dict(sorted(found.items())),
    }  # fmt: skip


def table(family: str, found: dict[str, Any]) -> Table:
    """Of each format and way of running it; faults are below."""
    rows = Table(title=f"{family}, {found['plans']} plans", caption="\n".join(found["faults"]))
    for column in ("format", "files", "refused", "way", "largest error / tolerance"):
        rows.add_column(column, justify="right")
    for way, error in found["largest_error_over_tolerance"].items():
        kind, _, engine = way.partition(" in ")
        counts = (found["files"].get(name, 0) for name in (kind, f"{kind} refused"))
        rows.add_row(kind, *map(str, counts), engine, f"{error:.3f}")
    return rows


if __name__ == "__main__":
    main()
