"""Our harness beside llama.cpp's own llama-bench, on the same file.

    python benchmarks/llama_bench.py --llama-bench PATH --out benchmarks/results/llama-bench.json
    python benchmarks/llama_bench.py --llama-bench PATH --file model-q4_0.gguf

Blocks of both take turns: llama-bench starts a process for each and repeats its tests in it; ours keeps its child
process and runs as many rounds. Threads, flash attention, KV cache and the libraries are the same where llama-bench is
built against those of llama-cpp-python (docs/measuring.md has the command); the one that is loaded is printed.

Compared are prefill (pp, from an empty cache) and decoding behind the prompt (tg at its depth), both as tokens over the
whole time, the mean of a block, as llama-bench counts. Then what makes ours differ is measured: the median of steps
in place of their mean, llama-bench's default depth of 0, and the seconds that a step of ours spends outside of
llama.cpp (the binding, and choosing the likeliest token, which llama-bench leaves out). Last, the CPU time of a decode
step of both, which others on the machine do not change. Without --file the weights are random, in the shape of a known
model. About 4 minutes. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from result import publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, dense_model, write_model

from saap_edge.engines.worker import Worker, child_environment
from saap_edge.errors import SaapError
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.machine.sensors import sensors
from saap_edge.measuring.contexts import random_tokens
from saap_edge.measuring.statistics import paired_ratio, scatter

CPU_REPETITIONS = 8
console = Console(width=120, stderr=True)

# In a process of its own: how long a step is inside llama_decode, and in all.
OUTSIDE = """
import json, sys, time
import numpy as np
import llama_cpp
from pathlib import Path
from saap_edge.engines.llama_cpp import LlamaCppEngine

path, threads, prompt, decode = sys.argv[1], *map(int, sys.argv[2:])
engine, inside, plain = LlamaCppEngine(Path(path), threads, prompt + decode), [], llama_cpp.llama_decode
def timed(*arguments):
    start = time.perf_counter()
    status = plain(*arguments)
    inside.append(time.perf_counter() - start)
    return status
llama_cpp.llama_decode = timed
before = []
for _ in range(5):
    engine.reset()
    start = time.perf_counter()
    engine.forward(list(range(1, prompt + 1)))
    before.append(time.perf_counter() - start - inside[-1])
inside.clear()
whole, choosing, token = [], [], 1
for _ in range(decode):
    start = time.perf_counter()
    logits = engine.forward([token])[-1]
    middle = time.perf_counter()
    token = int(logits.argmax())
    end = time.perf_counter()
    whole.append(end - start)
    choosing.append(end - middle)
outside = np.array(whole) - np.array(inside)
print(json.dumps({"step_us": 1e6 * np.median(whole), "outside_us": 1e6 * np.median(outside),
                  "choosing_us": 1e6 * np.median(choosing), "prompt_outside_us": 1e6 * np.median(before)}))
"""


def theirs_command(binary: Path, file: Path, args: argparse.Namespace, repetitions: int, prompt: str) -> list[str]:
    """Tests behind the prompt; without a prompt of their own (0) only decoding."""
    return [
        str(binary), "-m", str(file), "-t", str(args.threads), "-fa", "on", "-r", str(repetitions), "-o", "json",
        "-p", prompt, "-n", str(args.decode), "-d", str(args.prompt),
    ]  # fmt: skip


def theirs(binary: Path, file: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A block of llama-bench: its rows by test."""
    command = theirs_command(binary, file, args, args.repetitions, str(args.prompt))
    done = subprocess.run([*command, "-d", "0"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llama-bench failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    found = {}
    for row in json.loads(done.stdout):
        kind = "pp" if row["n_prompt"] else "tg"
        found[f"{kind}{row['n_prompt'] or row['n_gen']} @ d{row['n_depth']}"] = row
    return found


def ours(worker: Worker, args: argparse.Namespace) -> dict[str, float]:
    """A block of ours: means of tokens a second, and the same by the median step."""
    prompt = random_tokens(worker, args.prompt)
    timings = [worker.time(prompt, args.decode) for _ in range(args.repetitions)]
    return {
        "prefill": float(np.mean([args.prompt / timing["ttft_s"] for timing in timings])),
        "decode": float(np.mean([args.decode / sum(timing["decode_s"]) for timing in timings])),
        "decode, median step": float(np.mean([1 / np.median(timing["decode_s"]) for timing in timings])),
    }


def compare(binary: Path, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Blocks by turns; ratios are ours over theirs."""
    prefill, decode, empty = f"pp{args.prompt} @ d0", f"tg{args.decode} @ d{args.prompt}", f"tg{args.decode} @ d0"
    rates: dict[str, list[float]] = {}
    build: dict[str, Any] = {}
    with Worker("llama.cpp", file, args.threads, args.prompt + args.decode) as worker:
        ours(worker, args)
        for number in range(args.blocks):
            for side in ("ours", "theirs")[:: 1 if number % 2 == 0 else -1]:
                if side == "ours":
                    found = {f"ours, {name}": rate for name, rate in ours(worker, args).items()}
                else:
                    rows = theirs(binary, file, args)
                    build = {key: rows[decode][key] for key in ("build_commit", "build_number", "cpu_info")}
                    found = {f"llama-bench, {name}": row["avg_ts"] for name, row in rows.items()}
                for name, rate in found.items():
                    rates.setdefault(name, []).append(rate)
    pairs = {
        "prefill, ours / llama-bench": ("ours, prefill", f"llama-bench, {prefill}"),
        "decode, ours / llama-bench": ("ours, decode", f"llama-bench, {decode}"),
        "decode, our median step / our mean": ("ours, decode, median step", "ours, decode"),
        "decode, llama-bench at depth 0 / at the prompt's": (f"llama-bench, {empty}", f"llama-bench, {decode}"),
        "decode, our median step / llama-bench at depth 0": ("ours, decode, median step", f"llama-bench, {empty}"),
    }
    return {
        "build": build,
        "rates": {
            name: {"median": round(float(np.median(values)), 2), "scatter": round(scatter(values), 4)}
            for name, values in rates.items()
        },
        "ratios": {name: rounded(paired_ratio(rates[mine], rates[its])) for name, (mine, its) in pairs.items()},
    }


def cpu_time(binary: Path, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of CPU time of a decode step, which do not depend on who else uses the machine.

    llama-bench tells the clock only: its process with many repetitions took so much more than one with a single one.
    """
    pairs = []
    with Worker("llama.cpp", file, args.threads, args.prompt + args.decode) as worker:
        prompt = random_tokens(worker, args.prompt)
        worker.time(prompt, args.decode)
        for _ in range(args.cpu_blocks):
            once = process_cpu(theirs_command(binary, file, args, 1, "0"))
            timed = [worker.time(prompt, args.decode)["decode_cpu_s"] for _ in range(CPU_REPETITIONS)]
            many = process_cpu(theirs_command(binary, file, args, 1 + CPU_REPETITIONS, "0"))
            pairs.append((float(np.mean(timed)), (many - once) / CPU_REPETITIONS / args.decode))
    mine, its = zip(*pairs, strict=True)
    return {
        "ours_ms": round(1000 * float(np.median(mine)), 3), "llama_bench_ms": round(1000 * float(np.median(its)), 3),
        "ratio": rounded(paired_ratio(its, mine)),
    }  # fmt: skip


def process_cpu(command: list[str]) -> float:
    """CPU seconds that a program takes in all."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"llama-bench failed: status {status}")
    return usage.ru_utime + usage.ru_stime


def rounded(ratio: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) for key, value in ratio.items()}


def outside(file: Path, args: argparse.Namespace) -> dict[str, float]:
    """Microseconds of a decode step, and of it outside llama.cpp."""
    numbers = [str(number) for number in (args.threads, args.prompt, 4 * args.decode)]
    command = [sys.executable, "-c", OUTSIDE, str(file), *numbers]
    environment = child_environment() | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {name: round(value, 1) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def library(binary: Path) -> str:
    """Whether llama-bench runs the kernels that we run."""
    import llama_cpp

    told = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
    found = [
        Path(line.split("=>")[1].split()[0]) for line in told.splitlines() if "libggml-cpu.so" in line and "/" in line
    ]
    mine = Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"
    same = any(path.is_file() and path.read_bytes() == mine.read_bytes() for path in found)
    return "the same kernels (libggml-cpu.so)" if same else "another build of llama.cpp"


def show(result: dict[str, Any]) -> None:
    rates = Table(title=f"{result['what']}, {result['threads']} thread(s): tokens a second")
    for column in ("what", "median of blocks", "scatter"):
        rates.add_column(column, justify="left" if column == "what" else "right")
    for name, row in result["rates"].items():
        rates.add_row(name, f"{row['median']:.1f}", f"{row['scatter']:.1%}")
    ratios = Table(title=f"ratios of {result['blocks']} blocks by turns")
    for column in ("what", "ratio [95 %]"):
        ratios.add_column(column, justify="left" if column == "what" else "right")
    for name, row in result["ratios"].items():
        ratios.add_row(name, f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    console.print(rates, ratios)
    step, cpu = result["step"], result["cpu"]
    console.print(
        f"CPU time of a decode step: ours {cpu['ours_ms']:.2f} ms, llama-bench {cpu['llama_bench_ms']:.2f} ms: "
        f"{cpu['ratio']['ratio']:.3f} [{cpu['ratio']['low']:.3f}, {cpu['ratio']['high']:.3f}] of its speed"
    )
    console.print(
        f"a step of ours: {step['step_us']:.0f} µs, of them {step['outside_us']:.0f} outside llama.cpp "
        f"({step['choosing_us']:.0f} to choose the token), of a prompt {step['prompt_outside_us']:.0f}; "
        f"llama-bench has {result['library']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", type=Path, required=True, help="the program")
    parser.add_argument("--file", type=Path, help="a GGUF file (default: random weights of --shape)")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--quantisation", default="q4_0", help="of --shape (default q4_0)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=12, help="blocks of each (default 12)")
    parser.add_argument("--cpu-blocks", type=int, default=9, help="blocks of each for CPU time (default 9)")
    parser.add_argument("--repetitions", type=int, default=3, help="in a block (default 3)")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    if not args.llama_bench.is_file():
        parser.error(f"no program '{args.llama_bench}'")
    before = sensors()
    with tempfile.TemporaryDirectory(prefix="saap-edge-llama-bench-") as scratch:
        file, what = args.file, args.file and args.file.name
        if file is None:
            from saap_edge.exporting.gguf import write_gguf

            file, what = Path(scratch) / "model.gguf", f"{args.shape} {args.quantisation}, random weights"
            with console.status("writing the model"):
                folder = write_model(dense_model(SHAPES[args.shape]), Path(scratch) / "model")
                write_gguf(folder, file, args.quantisation)
        try:
            with console.status("measuring by turns"):
                found, step = compare(args.llama_bench, file, args), outside(file, args)
                cpu = cpu_time(args.llama_bench, file, args)
        except SaapError as error:
            raise SystemExit(str(error)) from None
    result = {
        "benchmark": "llama_bench", "what": what, "threads": args.threads, "prompt_tokens": args.prompt,
        "decode_tokens": args.decode, "blocks": args.blocks, "repetitions": args.repetitions,
        "machine": machine_facts() | {"before": before, "after": sensors()}, "versions": versions(),
        "library": library(args.llama_bench), **found, "step": step, "cpu": cpu,
    }  # fmt: skip
    show(result)
    publish(result, args.out)


if __name__ == "__main__":
    main()
