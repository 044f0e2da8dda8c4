"""Memory and time of exporting a model with Llama-3.1-8B's shape, against a plain copy of its files.

    python benchmarks/export_scale.py --out benchmarks/results/export-scale.json
    python benchmarks/export_scale.py --layers 2 --vocabulary 8192    # a try, in a minute

The model is random bfloat16 (16 GB), written a layer at a time. Every export runs in a fresh process; its bound is 3
GiB of resident memory in all, libraries and pages of mapped files included.

  peak      VmHWM of the process, set to zero when the export starts
  base      VmRSS of the process before the export: Python, torch, gguf, onnx
  tensors   (peak - base) over the bytes of the model's largest tensor: the exporters mean to stay below two
  read      bytes of the model's files over the seconds of the export
  copy      the same of a copy of these files, 8 MiB at a time, synced to disk: exports and copies alternate

Each file is then run by its engine in a process of its own. Both hold the same codes, so that the engines must agree:
"disagreement" is the root mean square of the difference of their logits over that of the logits (the last of 16 random
tokens). Needs 45 GB of disk, 10 GB of memory, and about 20 minutes of 2 cores; ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
from result import publish
from rich.table import Table
from scale import child, console, gib, memory, peaks, run, write_model
from shapes import write_tokenizer
from transformers import LlamaConfig

from saap_edge.artifacts import engine_of
from saap_edge.engines.worker import Worker
from saap_edge.evaluation.parity import relative_error
from saap_edge.exporting.write import write_artifact
from saap_edge.machine.facts import machine_facts

BOUND = 3 << 30
CHUNK = 8 << 20
FORMATS = ("gguf-q4_0", "onnx-int4")


def config_of(layers: int, vocabulary: int) -> LlamaConfig:
    """Llama-3.1-8B's shape (32 layers, 128256 tokens)."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_theta=500000.0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())


def size_of(path: Path) -> int:
    return sum(item.stat().st_size for item in files_of(path))


def sync(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def child_export(job: dict, base: dict[str, int]) -> dict:
    """Peak memory and time of one export, synced to disk."""
    import saap_edge.exporting.gguf
    import saap_edge.exporting.onnx  # noqa: F401 (libraries belong to the base)

    base |= memory()
    out = Path(job["out"])
    with peaks(base) as found:
        start, busy = time.perf_counter(), time.process_time()
        write_artifact(Path(job["folder"]), out, job["format"])
        sync(files_of(out))
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"peak": base["VmRSS"] + found["peak"], "base": base["VmRSS"], "seconds": seconds, "cpu_seconds": cpu}


def copy_seconds(folder: Path, out: Path) -> float:
    """Seconds a plain copy of a folder's files takes, synced to disk; the copy is gone afterwards."""
    start = time.perf_counter()
    for source in files_of(folder):
        with source.open("rb") as reader, out.open("wb") as writer:
            while chunk := reader.read(CHUNK):
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        out.unlink()
    return time.perf_counter() - start


def last_logits(path: Path, artifact_format: str, threads: int, vocabulary: int) -> np.ndarray:
    tokens = random.Random(0).sample(range(1, vocabulary), 16)
    with Worker(engine_of(artifact_format), path, threads, 64) as worker:
        return worker.logits(tokens, "prefill")[-1]


def row_of(artifact_format: str, found: dict, copied: float, path: Path, size: int, largest: int) -> dict:
    return {
        "format": artifact_format, "bytes": size_of(path), "peak": found["peak"], "base": found["base"],
        "tensors": round((found["peak"] - found["base"]) / largest, 2), "met": found["peak"] < BOUND,
        "seconds": round(found["seconds"], 1), "cpu_seconds": round(found["cpu_seconds"], 1),
        "read_mb_s": round(size / found["seconds"] / 1e6, 1), "copy_seconds": round(copied, 1),
        "copy_mb_s": round(size / copied / 1e6, 1), "copies": round(found["seconds"] / copied, 2),
    }  # fmt: skip


def show(rows: list[dict]) -> None:
    table = Table(title=f"exports; bound {gib(BOUND)} GiB")
    columns = ("format", "GB", "peak GiB", "base", "tensors", "met", "s", "CPU s", "read MB/s", "copy MB/s", "x copy")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["format"], f"{row['bytes'] / 1e9:.2f}", gib(row["peak"]), gib(row["base"]), f"{row['tensors']:.2f}",
            "yes" if row["met"] else "no", f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}",
            f"{row['read_mb_s']:.0f}", f"{row['copy_mb_s']:.0f}", f"{row['copies']:.2f}",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder with room for everything (default: the temporary folder)")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child), {"export": child_export})
        return

    config, rows, logits = config_of(args.layers, args.vocabulary), [], []
    largest = 2 * max(args.vocabulary, config.intermediate_size) * config.hidden_size
    with tempfile.TemporaryDirectory(prefix="saap-edge-export-", dir=args.work) as name:
        folder = Path(name) / "model"
        with console.status("writing the model"):
            write_model(folder, config, "bfloat16")
            write_tokenizer(folder)
        size = size_of(folder)
        for artifact_format in args.formats:
            path = Path(name) / artifact_format
            job = {"what": "export", "folder": str(folder), "out": str(path), "format": artifact_format}
            with console.status(artifact_format):
                found = run(job | {"threads": args.threads}, __file__)
                copied = copy_seconds(folder, Path(name) / "copy")
                rows.append(row_of(artifact_format, found, copied, path, size, largest))
                logits.append(last_logits(path, artifact_format, args.threads, args.vocabulary))
        show(rows)
    result = {
        "benchmark": "export_scale",
        "shape": {"layers": args.layers, "vocabulary": args.vocabulary, "hidden": config.hidden_size},
        "machine": machine_facts(), "threads": args.threads, "model_bytes": size, "largest_tensor_bytes": largest,
        "rows": rows, "disagreement": [round(relative_error(other, logits[0]), 5) for other in logits[1:]],
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
