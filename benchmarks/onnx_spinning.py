"""Does ONNX Runtime decode faster with threads that spin, or that sleep, where they wait?

One ONNX folder is loaded twice, spinning and sleeping, and both decode by turns: as the machine is, and then beside
busy processes. Printed are ratios, sleeping over spinning, of tokens a second and of CPU time a token: medians over
rounds.

    python benchmarks/onnx_spinning.py out/onnx/int4 --threads 2 --rounds 15 --busy 1 --out onnx_spinning.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saap_edge.engines.onnxruntime import SPINNING
from saap_edge.engines.worker import Worker
from saap_edge.machine.facts import cpu_name
from saap_edge.machine.sharing import free_cpus, shared

PROMPT, STEPS = list(range(5, 37)), 24


def burn() -> None:
    while True:
        sum(range(100_000))


def opened(stack: ExitStack, folder: Path, threads: int) -> dict[str, Worker]:
    workers = {}
    for name, word in (("spinning", "1"), ("sleeping", "0")):
        os.environ[SPINNING] = word
        workers[name] = stack.enter_context(Worker("onnxruntime", folder, threads, len(PROMPT) + STEPS))
    return workers


def measured(folder: Path, threads: int, rounds: int, busy: int) -> dict[str, Any]:
    neighbours = [multiprocessing.Process(target=burn, daemon=True) for _ in range(busy)]
    for neighbour in neighbours:
        neighbour.start()
    free, speed, cpu = free_cpus(seconds=1.0), [], []
    try:
        with ExitStack() as stack:
            workers = opened(stack, folder, threads)
            for number in range(rounds + 2):
                names = sorted(workers, key=lambda _: random.random())
                took = {name: workers[name].time(PROMPT, STEPS) for name in names}
                if number < 2:  # warm-up
                    continue
                seconds, of_cpu = (
                    {name: statistics.median(told[kind]) for name, told in took.items()}
                    for kind in ("decode_s", "decode_cpu_s")
                )
                speed.append(seconds["spinning"] / seconds["sleeping"])
                cpu.append(of_cpu["sleeping"] / of_cpu["spinning"])
    finally:
        for neighbour in neighbours:
            neighbour.kill()
    quartiles = [round(value, 2) for value in statistics.quantiles(speed, n=4)]
    return {
        "busy": busy, "free_cpus": free, "chosen": "sleeping" if shared(threads, free) else "spinning",
        "speed_ratio": quartiles[1], "speed_quartiles": quartiles[::2], "cpu_ratio": round(statistics.median(cpu), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--busy", type=int, default=1, help="busy processes beside it, in the second part")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [measured(args.folder, args.threads, args.rounds, busy) for busy in (0, args.busy)]
    for row in rows:
        print(
            f"{row['busy']} busy processes of our own, {row['free_cpus']:.2f} CPUs free: sleeping {row['speed_ratio']} "
            f"{row['speed_quartiles']} times as fast, {row['cpu_ratio']} of the CPU time; chosen: {row['chosen']}"
        )
    about = {"cpu": cpu_name(), "threads": args.threads, "rounds": args.rounds, "load_average": os.getloadavg()[0]}
    document = json.dumps(about | {"rows": rows})
    if args.out:
        args.out.write_text(document + "\n", encoding="utf-8")
    print(document)


if __name__ == "__main__":
    main()
