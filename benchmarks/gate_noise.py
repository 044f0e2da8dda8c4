"""How often the gate is wrong on a noisy machine: equal artifacts side by side, and ones that are 5 % and 10 % slower.

    python benchmarks/gate_noise.py --state noise.jsonl --out benchmarks/results/gate-noise.json

Every comparison is what `saap-edge bench NEW --against OLD --budget` does: two processes of their own, warm-up, rounds
in random order, and more rounds while the verdict is open, until the last planned look. Nothing is shared between
comparisons. The slower model has the same shape and more layers: 10 % and 5 % more work, whose true ratio is measured
apart, over many rounds. A pair of equal files is judged by both limits.

  limit 0.95   what one writes to catch a slowdown of 10 %: half way between equal and that
  limit 0.975  the same for 5 %

The other core is idle, or busy: a process copies memory that no cache holds, in bursts of up to two seconds, half of
the time. A false alarm is a `fail` of equal files, a miss a `pass` of the slower one; inconclusive (exit 3) is neither,
and never green. Comparisons come in an order drawn by lot. --leave-cores lets the system place both processes, instead
of drawing a core for both in every round: what that is worth. A run that was stopped goes on from --state. It takes
about 12 minutes on 2 idle cores. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from result import publish
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shapes import Shape, dense_model, write_model

from saap_edge.artifacts import engine_of
from saap_edge.exporting.write import export_artifacts
from saap_edge.gating import Budget, judge
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.measuring import measure as harness
from saap_edge.measuring.measure import BenchConditions, Harness, Subject
from saap_edge.measuring.statistics import look_confidence, paired_ratio, planned_looks
from saap_edge.model.spec import LayerShape

FORMAT = "gguf-q4_0"
LAYERS = 20
SHAPE = Shape(512, 64, LAYERS, 4096, LayerShape(8, 4, 1024))  # 29 MB of weights a token in 4 bits
SLOWER = {"0 %": 0, "5 %": 1, "10 %": 2}  # layers more
LIMITS = {0.95: "10 %", 0.975: "5 %"}  # and the slowdown each is there to catch
ROUNDS, MOST = 8, 64
PROMPT, DECODE = 16, 32
console = Console(width=120)


def write_subjects(scratch: Path) -> dict[str, Subject]:
    """The artifact, and the slower ones."""
    found = {}
    for name, more in SLOWER.items():
        folder = scratch / f"model-{more}"
        write_model(dense_model(replace(SHAPE, layers=LAYERS + more)), folder)
        out = scratch / f"export-{more}"
        out.mkdir()
        [artifact] = export_artifacts(folder, out, (FORMAT,), name, {}, lambda _: None, 32).artifacts
        found[name] = Subject(
            name, "candidate", engine_of(FORMAT), FORMAT, out / artifact.path, artifact.projection_bytes, artifact.bytes
        )
    return found


# Copies memory in bursts, until it is killed.
STREAM = """
import random, time
import numpy as np
source = np.ones(2**25)  # 256 MiB
target = np.empty_like(source)
print("ready", flush=True)
while True:
    end = time.monotonic() + random.uniform(0.1, 2)
    while time.monotonic() < end:
        np.copyto(target, source)
    time.sleep(random.uniform(0.1, 2))
"""


@contextmanager
def other_core(busy: bool) -> Iterator[None]:
    if not busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", STREAM], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def open_pair(base: Subject, candidate: Subject, rounds: int, most: int) -> Harness:
    """What `bench` opens. Loading and memory, which no limit here is on, are measured once instead of three times."""
    harness.LOADS = 1
    pair = [replace(base, name="old", role="baseline"), replace(candidate, name="new", role="candidate")]
    return Harness(pair, [("old", "new")], BenchConditions(1, PROMPT, DECODE, rounds, max_rounds=most))


def budget(limit: float) -> Budget:
    return Budget.model_validate({"limits": [{"metric": "decode_vs_baseline", "min": limit}]})


def compare(subjects: dict[str, Subject], slowdown: str, busy: bool, limits: list[float]) -> dict[str, Any]:
    """One comparison: the verdict and the rounds of every limit, each as if it had been the only one."""
    verdicts: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    with other_core(busy), open_pair(subjects["0 %"], subjects[slowdown], ROUNDS, MOST) as pair:
        pair.warm_up()
        done = 0
        for look in planned_looks(ROUNDS, MOST):
            pair.run(look - done)
            done, document = look, pair.document()
            for limit in limits:
                if verdicts.get(str(limit), {}).get("verdict") in (None, "inconclusive"):
                    [verdict] = judge(document, budget(limit), None)
                    ratio = {name: getattr(verdict, name) for name in ("value", "low", "high")}
                    verdicts[str(limit)] = {"verdict": verdict.verdict, "rounds": look, **ratio}
            if all(entry["verdict"] != "inconclusive" for entry in verdicts.values()):
                break
    return {
        "slowdown": slowdown, "busy": busy, "verdicts": verdicts, "seconds": round(time.monotonic() - started, 1),
        "noise": max(entry["metrics"]["noise"] for entry in document["artifacts"]),
    }  # fmt: skip


def true_ratio(subjects: dict[str, Subject], slowdown: str, rounds: int) -> dict[str, Any]:
    """How fast the slower one really is: many rounds of several pairs of processes, the other core idle."""
    old, new = [], []
    for _ in range(4):
        with open_pair(subjects["0 %"], subjects[slowdown], ROUNDS, MOST) as pair:
            pair.warm_up()
            pair.run(rounds // 4)
            samples = [entry["metrics"]["decode_tok_s"]["samples"] for entry in pair.document()["artifacts"]]
        old += samples[0]
        new += samples[1]
    return {"slowdown": slowdown, **paired_ratio(new, old)}  # of rates: new over old


def plan(repeats: int) -> list[tuple[str, bool, list[float], int]]:
    """Every comparison: equal files by both limits, slower ones by the limit that is there to catch them."""
    cases = [("0 %", busy, list(LIMITS), number) for busy in (False, True) for number in range(repeats)]
    for limit, slowdown in LIMITS.items():
        cases += [(slowdown, busy, [limit], number) for busy in (False, True) for number in range(repeats // 2)]
    random.Random(0).shuffle(cases)
    return cases


def count(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per slowdown, limit and state of the other core: how often each verdict came, and after how many rounds."""
    table = []
    for slowdown in SLOWER:
        for limit in LIMITS:
            for busy in (False, True):
                own = [row for row in rows if row["slowdown"] == slowdown and row["busy"] == busy]
                entries = [row["verdicts"][str(limit)] for row in own if str(limit) in row["verdicts"]]
                if not entries:
                    continue
                words = [entry["verdict"] for entry in entries]
                table.append({
                    "slowdown": slowdown, "limit": limit, "other_core": "busy" if busy else "idle",
                    "comparisons": len(words), **{word: words.count(word) for word in ("pass", "fail", "inconclusive")},
                    "median_rounds": float(np.median([entry["rounds"] for entry in entries])),
                    "median_noise": float(np.median([row["noise"] for row in own])),
                    "median_seconds": float(np.median([row["seconds"] for row in own])),
                    "values": [round(entry["value"], 4) for entry in entries],
                })  # fmt: skip
    return table


def show(table: list[dict[str, Any]], truths: list[dict[str, Any]]) -> None:
    view = Table(box=MARKDOWN)  # as docs/gate.md has it
    names = (
        "slowdown",
        "limit",
        "other_core",
        "comparisons",
        "pass",
        "fail",
        "inconclusive",
        "median_rounds",
        "median_noise",
    )
    for name in names:
        view.add_column(name.replace("_", " "), justify="right")
    for row in table:
        view.add_row(*(f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in names))
    console.print(view)
    for row in (row for row in table if row["slowdown"] == "0 %"):
        far = max(abs(value - 1) for value in row["values"])
        console.print(
            f"equal files, limit {row['limit']}, other core {row['other_core']}: {np.std(row['values']):.1%} apart "
            f"(standard deviation), {far:.1%} at most"
        )
    for truth in truths:
        interval = f"[{truth['low']:.4f}, {truth['high']:.4f}]"
        console.print(f"true ratio of {truth['slowdown']}: {truth['ratio']:.4f} {interval}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40, help="comparisons of equal files, idle and busy each")
    parser.add_argument("--true-rounds", type=int, default=120, help="rounds for the true ratio of a slower file")
    parser.add_argument("--leave-cores", action="store_true", help="let the system place the processes")
    parser.add_argument("--state", type=Path, help="file that a stopped run goes on from")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.leave_cores:
        harness.fastest_cores = lambda threads: []
    rows = []
    if args.state and args.state.exists():
        rows = [json.loads(line) for line in args.state.read_text().splitlines()]
    done = {tuple(row["case"]) for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        subjects = write_subjects(Path(scratch))
        work = [(("truth", name), partial(true_ratio, subjects, name, args.true_rounds)) for name in SLOWER]
        for slowdown, busy, limits, number in plan(args.repeats):
            work.append(((slowdown, busy, number), partial(compare, subjects, slowdown, busy, limits)))
        for case, run in track(work, "comparisons", console=console):
            if case not in done:
                rows.append(run() | {"case": case})
                if args.state:
                    with args.state.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    truths = [
        {name: value for name, value in row.items() if name != "case"} for row in rows if row["case"][0] == "truth"
    ]
    rows = [row for row in rows if row["case"][0] != "truth"]
    table = count(rows)
    show(table, truths)
    read = {name: subject.projection_bytes for name, subject in subjects.items()}
    equal = [row for row in table if row["slowdown"] == "0 %"]
    result = {
        "benchmark": "gate_noise", "machine": machine_facts(), "versions": versions(), "format": FORMAT,
        "weight_bytes": read, "threads": 1, "cores": harness.fastest_cores(1) or None,
        "looks": planned_looks(ROUNDS, MOST),
        "confidence_of_a_look": look_confidence(len(planned_looks(ROUNDS, MOST))), "true_ratios": truths,
        "false_alarms": sum(row["fail"] for row in equal), "of": sum(row["comparisons"] for row in equal),
        "rows": table,
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
