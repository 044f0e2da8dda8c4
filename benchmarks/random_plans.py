"""Random valid plans over all model families: do their GGUF and ONNX files load, and answer as torch does?

    python benchmarks/random_plans.py --out benchmarks/results/random-plans.json
    python benchmarks/random_plans.py --plans 40    # a try, in half a minute

Every case is a tiny random model of random shape, pruned by a random plan that the planner could have made: KV groups,
query slots, channels and whole sublayers gone, all layers alike or each its own, biases as repair adds them, rope
scaling, tied or not. tests/exporting/random_plans.py says what is checked, and the test suite runs the first 200 of
these cases. All files run in child processes; a file that kills one is named, and counts as a fault.

The table shows, for every format and way of running it, how many files were run, how many models were refused before a
file was there, and the largest error over its tolerance. Takes 20 minutes of one core; ends with one JSON line and, if
there was a fault, exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from result import publish
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from saap_edge.machine.facts import machine_facts, versions
from tests.exporting.random_plans import Outcome, check

BATCH = 20
console = Console(width=120)


def show(outcome: Outcome) -> None:
    table = Table(title="random plans")
    for column in ("format", "files", "refused", "way", "largest error / tolerance"):
        table.add_column(column, justify="right")
    for way, error in sorted(outcome.worst.items()):
        kind, _, engine = way.partition(" in ")
        counts = outcome.counts[kind], outcome.counts[f"{kind} refused"]
        table.add_row(kind, *map(str, counts), engine, f"{error:.3f}")
    console.print(table)
    for fault in outcome.faults:
        console.print(fault)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    total = Outcome()
    for start in track(range(0, args.plans, BATCH), "plans", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory(prefix="saap-edge-plans-") as scratch:
            found = check(range(start, min(start + BATCH, args.plans)), Path(scratch))
        total.faults += found.faults
        total.counts += found.counts
        total.worst |= {way: max(error, total.worst.get(way, 0.0)) for way, error in found.worst.items()}
    show(total)
    result = {
        "benchmark": "random_plans", "machine": machine_facts(), "versions": versions(), "plans": args.plans,
        "files": dict(sorted(total.counts.items())),
        "largest_error_over_tolerance": {way: round(error, 4) for way, error in sorted(total.worst.items())},
        "faults": total.faults,
    }  # fmt: skip
    publish(result, args.out)
    sys.exit(1 if total.faults else 0)


if __name__ == "__main__":
    main()
