"""Predict a model on this machine from a probe of it, and measure the same model: do they agree?

    python benchmarks/prediction_here.py --threads 1 --out benchmarks/results/prediction-here.json

The model has SmolLM2-135M's shape (shapes.py) and random weights. Probe and measurement alternate, and of each the best
round counts: both then see the machine at its quietest. A third column is predicted from bandwidth alone, as for a
board that was never probed. Needs 1.5 GB of disk in the temporary folder and two minutes, more where other programs
run. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from result import publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, dense_model, write_model

from saap_edge.artifacts import engine_of
from saap_edge.engines.worker import Worker
from saap_edge.exporting.write import export_artifacts
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.prediction.predict import Prediction, artifact_cost, predict
from saap_edge.probe.board import SIZE, measure_bandwidth, measure_kernel
from saap_edge.probe.onnx_model import measure_onnx_kernel
from saap_edge.targets import Bandwidth, Figure, Kernel, Target, this_machine

FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-int8", "onnx-int4")
PROMPT, DECODE = 64, 32
console = Console(width=120)


def figure(value: float) -> Figure:
    return Figure(value=value, source="measured by this benchmark")


def probe(artifact_format: str, threads: int) -> tuple[float, float]:
    kind, _, quantisation = artifact_format.partition("-")
    return (measure_kernel if kind == "gguf" else measure_onnx_kernel)(quantisation, threads, SIZE, 1)


def measure(path: Path, artifact_format: str, threads: int) -> tuple[float, float]:
    """(seconds of a step, seconds of the prompt) of one round after a warm-up."""
    with Worker(engine_of(artifact_format), path, threads, PROMPT + DECODE) as worker:
        timing = [worker.time(list(range(PROMPT)), DECODE) for _ in range(2)][1]
    return float(np.median(timing["decode_s"])), float(timing["ttft_s"])


def alternate(path: Path, artifact_format: str, threads: int, rounds: int) -> tuple[Kernel, float, float]:
    """(kernel, tokens a second, ms to the first token), the best rounds of each."""
    probes, runs = [], []
    for _ in range(rounds):
        probes.append(probe(artifact_format, threads))
        runs.append(measure(path, artifact_format, threads))
    reading, macs = (max(each[index] for each in probes) for index in (0, 1))
    step, first = (min(each[index] for each in runs) for index in (0, 1))
    return Kernel(gemv_gb_s=figure(reading), gemm_gmac_s=figure(macs)), 1 / step, 1000 * first


def row_of(name: str, measured: tuple[float, float], probed: Prediction, copied: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"format": name, "decode_tok_s": round(measured[0], 1), "ttft_ms": round(measured[1], 1)}
    for way, prediction in (("probed", probed), ("bandwidth", copied)):
        for what in ("decode_tok_s", "ttft_ms"):
            estimate = getattr(prediction, what)
            inside = estimate.low <= row[what] <= estimate.high
            row[f"{what} {way}"] = {"value": round(estimate.value, 1), "ratio": round(estimate.value / row[what], 3),
                                    "inside": inside}  # fmt: skip
    return row


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="measured here, and predicted / measured (* outside the 80 % interval)")
    for column in ("format", "tok/s", "by kernels", "by bandwidth", "ttft ms", "by kernels", "by bandwidth"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = []
        for what in ("decode_tok_s", "ttft_ms"):
            found = [row[f"{what} {way}"] for way in ("probed", "bandwidth")]
            cells += [f"{row[what]:.1f}", *(f"{each['ratio']:.2f}{'' if each['inside'] else '*'}" for each in found)]
        table.add_row(row["format"], *cells)
    console.print(table)


def with_figures(threads: int, **more: Any) -> Target:
    return this_machine().model_copy(update={"threads": threads} | more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4, help="alternating rounds, of which the best counts")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()

    facts, rows = machine_facts(), []
    with tempfile.TemporaryDirectory(prefix="saap-edge-here-") as scratch, console.status("building") as status:
        folder, out = write_model(dense_model(SHAPES["smollm2-135m"]), Path(scratch) / "model"), Path(scratch) / "out"
        out.mkdir()
        manifest = export_artifacts(folder, out, FORMATS, "dense", {}, lambda _: None)
        for artifact in manifest.artifacts:
            status.update(f"measuring {artifact.format}")
            path = out / artifact.path
            copy = figure(measure_bandwidth()[0])
            kernel, decode, first = alternate(path, artifact.format, args.threads, args.rounds)
            cost, context = artifact_cost(path), PROMPT + DECODE // 2
            probed = with_figures(args.threads, kernels={artifact.format: kernel}, bandwidth_gb_s=Bandwidth())
            copied = with_figures(args.threads, bandwidth_gb_s=Bandwidth(copy_measured=copy))
            found = [predict(cost, target, PROMPT, context) for target in (probed, copied)]
            rows.append(row_of(artifact.format, (decode, first), *found))
    show(rows)
    result = {
        "benchmark": "prediction_here", "machine": facts, "versions": versions(), "threads": args.threads,
        "prompt_tokens": PROMPT, "decode_tokens": DECODE, "rounds": args.rounds, "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
