"""Our int4 ONNX against what a user would run instead, on the same random weights: who decodes fastest?

    python benchmarks/runtimes.py --shape smollm2-135m --threads 1 --optimum-python PYTHON --out runtimes.json

- ours: int4 with groups of 32 and of 128 inputs, and int4-full (embedding and head in 4 bits too), through saap-edge's
  engine and through onnxruntime-genai;
- genai: what onnxruntime-genai's own model builder makes of the model (int4, its defaults for the CPU: groups of 32,
  embedding and head in 4 bits too), through its own runtime;
- both graphs in the same plain onnxruntime session, which leaves only the graphs to differ;
- llama.cpp's Q4_0, written by saap-edge (embedding and head Q8_0);
- float32: transformers on torch, and optimum-onnx where --optimum-python names an interpreter that has it (it needs
  transformers 4, so it cannot live beside saap-edge).

All are loaded at once, each in a process of its own, and run by turns, in an order that moves on every round; ratios
are of the same round. "MB/token" are the bytes of weights in the file that a token reads; "packed" is what
onnxruntime's kernel reads of them, which keeps one float32 more for every group (MlasQNBitGemm: the sum of the block).
The floor is the time one thread needs to read as many bytes over and over.

`--quality FOLDER --text FILE` measures the perplexity of the int4 files on a trained model as well: speed bought with
quality is another thing than speed. Needs 3 GB of disk (Qwen2.5-0.5B: 9 GB, and 9 GB of memory), and about 4 minutes
(12); ends with one JSON line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from contestant import Contestant
from result import publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, dense_model, write_model

from saap_edge.engines.worker import Worker
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.onnx import write_onnx
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.measuring.statistics import paired_ratio
from saap_edge.model.perplexity import text_hash, text_windows
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.probe.board import measure_bandwidth

BASE = "genai builder, genai"
OURS = {"ours 32": ("int4", 32), "ours 128": ("int4", 128), "ours full 128": ("int4-full", 128)}
PROMPT, STEPS, WARMUP, WINDOW = 64, 32, 1, 256
console = Console(width=120, stderr=True)


@dataclass
class Row:
    """One way to run the model. `file` and `packed` are bytes a token; `open` starts the process."""

    name: str
    file: int
    packed: int
    open: Callable[[], Any]
    step_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    version: str = ""
    peak: int = 0


def build(folder: Path, scratch: Path, threads: int, optimum_python: Path | None) -> list[Row]:
    """Write every format of the model in `folder`."""
    context = PROMPT + STEPS + 1

    def ours(path: Path, engine: str) -> Callable[[], Worker]:
        return lambda: Worker(engine, path, threads, context)

    def theirs(path: Path, runtime: str, python: str = sys.executable) -> Callable[[], Contestant]:
        return lambda: Contestant(runtime, path, threads, context, python)

    graphs = {name: write_ours(name, folder, scratch) for name in OURS}
    graphs["genai builder"] = build_genai(folder, scratch / "genai")
    rows = []
    for name, path in graphs.items():
        runtimes = {"genai": theirs(path, "genai"), "session": theirs(path, "session")}
        if name.startswith("ours"):
            runtimes["engine"] = ours(path, "onnxruntime")
        rows += [Row(f"{name}, {runtime}", *graph_bytes(path), start) for runtime, start in runtimes.items()]
    gguf = scratch / "q4_0.gguf"
    size = write_gguf(folder, gguf, "q4_0")["projection_bytes"]
    rows.append(Row("Q4_0, llama.cpp", size, size, ours(gguf, "llama.cpp")))
    size = (folder / "model.safetensors").stat().st_size  # float32, and a tied table is read as the head
    rows.append(Row("fp32, torch", size, size, theirs(folder, "torch")))
    if optimum_python:
        path = export_optimum(folder, scratch / "optimum", optimum_python)
        rows.append(Row("fp32, optimum", size, size, theirs(path, "optimum", str(optimum_python))))
    return rows


def write_ours(name: str, folder: Path, scratch: Path) -> Path:
    out = scratch / name.replace(" ", "-")
    write_onnx(folder, out, *OURS[name])
    return out


def build_genai(folder: Path, out: Path) -> Path:
    """onnxruntime-genai's model builder, with its defaults for int4 on the CPU."""
    options = ["-i", folder, "-o", out, "-p", "int4", "-e", "cpu", "-c", out.with_suffix(".cache")]
    quietly([sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, options)])
    return out


def export_optimum(folder: Path, out: Path, python: Path) -> Path:
    options = ["export", "onnx", "--model", str(folder), "--task", "text-generation-with-past", str(out)]
    quietly([str(python), "-m", "optimum.commands.optimum_cli", *options])
    return out


def quietly(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def graph_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of weights that one token reads of an ONNX folder: in the file, and as the kernels pack them."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    sizes = {
        tensor.name: int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.INT64  # shapes and axes
    }
    read, packed = {}, 0
    for node in graph.node:
        if node.op_type in ("GatherBlockQuantized", "GroupQueryAttention", "Reshape"):
            continue  # a row of the embedding, of rotary tables, another view of the embedding
        read |= {name: sizes[name] for name in node.input if name in sizes}
        if node.op_type == "MatMulNBits":
            packed += sizes[node.input[2]]
    return sum(read.values()), sum(read.values()) + packed


def race(rows: list[Row], rounds: int, vocabulary: int) -> None:
    """Fill in the times of all rows, by turns."""
    prompt = [int(token) for token in np.random.default_rng(0).integers(0, vocabulary, PROMPT)]
    with ExitStack() as stack:
        children = [stack.enter_context(row.open()) for row in rows]
        for number in range(WARMUP + rounds):
            for index in range(len(rows)):
                row, child = rows[(index + number) % len(rows)], children[(index + number) % len(rows)]
                timing = child.time(prompt, STEPS)
                if number >= WARMUP:
                    row.step_s.append(float(np.median(timing["decode_s"])))
                    row.ttft_s.append(timing["ttft_s"])
        for row, child in zip(rows, children, strict=True):
            row.version, row.peak = child.loaded["version"], child.memory()["peak"]


def documents(rows: list[Row]) -> list[dict[str, Any]]:
    base = next(row for row in rows if row.name == BASE)
    found = []
    for row in rows:
        floor = row.packed / measure_bandwidth(max(1, row.packed >> 20), rounds=9)[1] / 1e9
        step = float(np.median(row.step_s))
        found.append({
            "name": row.name, "version": row.version, "bytes_per_token": row.file, "packed_bytes_per_token": row.packed,
            "decode_tok_s": round(1 / step, 2), "read_gb_s": round(row.packed / step / 1e9, 2),
            "floor_ms": round(1000 * floor, 3), "of_floor": round(floor / step, 3),
            "decode_ratio": rounded(paired_ratio(base.step_s, row.step_s)),
            "prefill_ratio": rounded(paired_ratio(base.ttft_s, row.ttft_s)), "peak_rss_mib": round(row.peak / 2**20, 1),
        })  # fmt: skip
    return found


def rounded(ratio: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in ratio.items()}


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in (
        "what, runtime", "MB/token", "packed", "floor ms", "tok/s", "of floor", "decode / genai [95 %]", "prefill",
        "peak MiB",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    for row in rows:
        decode = row["decode_ratio"]
        table.add_row(
            row["name"], f"{row['bytes_per_token'] / 1e6:.1f}", f"{row['packed_bytes_per_token'] / 1e6:.1f}",
            f"{row['floor_ms']:.2f}", f"{row['decode_tok_s']:.1f}", f"{row['of_floor']:.2f}",
            f"{decode['ratio']:.2f} [{decode['low']:.2f}, {decode['high']:.2f}]",
            f"{row['prefill_ratio']['ratio']:.2f}", f"{row['peak_rss_mib']:.0f}",
        )  # fmt: skip
    console.print(table)


def quality(model: Path, text: Path, windows: int, scratch: Path, threads: int) -> dict[str, Any]:
    """Perplexity of the int4 files of a trained model, and of its fp32 file, in a plain session or our engine."""
    ids = text_windows(load_tokenizer(model), text.read_text(encoding="utf-8"), WINDOW, windows).tolist()
    fp32 = scratch / "quality-fp32"
    write_onnx(model, fp32, "fp32")
    (scratch / "quality").mkdir()
    folders = {"fp32": fp32} | {name: write_ours(name, model, scratch / "quality") for name in OURS}
    folders["genai builder"] = build_genai(model, scratch / "quality-genai")
    found = {}
    for name, folder in folders.items():
        with Contestant("session", folder, threads, WINDOW) as child:
            found[name] = round(float(np.exp(np.mean([child.nll(window) for window in ids]))), 4)
    table = Table(title=f"perplexity of {model.name}, {windows} windows of {WINDOW} tokens of {text.name}")
    for column in ("file", "perplexity", "over fp32"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}", f"{100 * (value / found['fp32'] - 1):+.2f} %")
    console.print(table)
    return {
        "model": model.name, "text": text.name, "text_sha256": text_hash(text), "windows": windows, "window": WINDOW,
        "perplexity": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default 15)")
    parser.add_argument("--optimum-python", type=Path, help="interpreter that has optimum-onnx")
    parser.add_argument("--quality", type=Path, help="Hugging Face folder of a trained model, for perplexity")
    parser.add_argument("--text", type=Path, help="text to measure perplexity on")
    parser.add_argument("--windows", type=int, default=64, help=f"windows of {WINDOW} tokens of it (default 64)")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    if bool(args.quality) != bool(args.text):
        parser.error("--quality and --text go together")
    result: dict[str, Any] = {
        "benchmark": "runtimes", "shape": f"{args.shape}, random weights", "threads": args.threads,
        "rounds": args.rounds, "prompt_tokens": PROMPT, "decode_tokens": STEPS, "machine": machine_facts(),
        "versions": versions(), "left_out": [] if args.optimum_python else ["fp32, optimum: no --optimum-python"],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="saap-edge-runtimes-") as name:
        scratch = Path(name)
        with console.status("building and exporting"):
            folder = write_model(dense_model(SHAPES[args.shape]), scratch / "model")
            rows = build(folder, scratch, args.threads, args.optimum_python)
        with console.status("racing"):
            race(rows, args.rounds, SHAPES[args.shape].vocabulary)
        result["rows"] = documents(rows)
        show(result["rows"], f"{args.shape}, {args.threads} thread(s), {args.rounds} rounds by turns")
        if args.quality:
            result["quality"] = quality(args.quality, args.text, args.windows, scratch, args.threads)
    if result["left_out"]:
        console.print("left out:", *result["left_out"])
    publish(result, args.out)


if __name__ == "__main__":
    main()
