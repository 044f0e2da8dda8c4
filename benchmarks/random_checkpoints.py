"""Random checkpoints of all families, valid and damaged: are they read right, or refused in one line?

    python benchmarks/random_checkpoints.py --count 1000 --out benchmarks/results/random-checkpoints.json
    python benchmarks/random_checkpoints.py --count 60    # a try, in half a minute

A quarter of the cases are valid: tiny random models in the layouts that published folders have (which head is stored,
types, shards, names, config.json in old and new words). compile's check, load_model, evaluate and an export have to
take each, and the logits, those of the exported file in llama.cpp or ONNX Runtime too, have to be transformers'. The
others are damaged, once or twice, by one of 300 faults of tensors, files, indices, config.json and tokenizer files:
refused by SaapError in one line that names what is wrong, or answered as transformers answers.
tests/model/checkpoint_cases.py says what is checked, and the test suite runs 266 such cases. Some of the refused are
given to `saap-edge compile` too: exit code 2, one line, no folder.

`--seed` draws others. Takes 6 minutes of one core; ends with one JSON line and, if there was a fault, exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from result import publish
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from saap_edge.machine.facts import machine_facts, versions
from tests.model.checkpoint_cases import Outcome, check_damaged, check_valid
from tests.model.damage import FAULTS

BATCH = 25
console = Console(width=120)


def run(count: int, seed: int, commands: int) -> Outcome:
    """`count` cases in batches, every fourth batch of valid ones."""
    total, batches = Outcome(), -(-count // BATCH)
    for batch in track(range(batches), "checkpoints", console=Console(stderr=True)):
        numbers = range(seed + batch * BATCH, seed + min((batch + 1) * BATCH, count))
        with tempfile.TemporaryDirectory(prefix="saap-edge-checkpoints-") as scratch:
            if batch % 4 == 3:
                found = check_valid(numbers, Path(scratch))
            else:
                found = check_damaged(numbers, Path(scratch), seed + batch, by_command=commands)
        total.faults += found.faults
        total.counts += found.counts
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=1, help="of a batch's refused cases that compile is run on")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    outcome = run(args.count, args.seed, args.commands)
    table = Table("cases", "number", title="random checkpoints")
    for name, number in sorted(outcome.counts.items()):
        table.add_row(name, str(number))
    console.print(table)
    for fault in outcome.faults:
        console.print(fault, markup=False)
    valid = Counter({name: number for name, number in outcome.counts.items() if name.startswith("valid ")})
    result = {
        "benchmark": "random_checkpoints", "machine": machine_facts(), "versions": versions(), "count": args.count,
        "seed": args.seed, "kinds_of_faults": len(FAULTS), "valid": valid.total(),
        "counts": dict(sorted(outcome.counts.items())), "faults": outcome.faults,
    }  # fmt: skip
    publish(result, args.out)
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
