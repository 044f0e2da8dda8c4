"""How far a faultless artifact is from torch, as predicted by an emulation of its runtime and as observed.

    python benchmarks/arithmetic.py --model saap_edge/reference/wikitext-llama --out benchmarks/results/arithmetic.json

`verify` tolerates twice the deviation that the emulation (saap_edge/evaluation/arithmetic.py) predicts for the tokens
it runs. Two things justify that, and this shows both, for every format and group, tuned blocks included (the blocks
are the weights rounded to nearest). The deviation observed is the one predicted: column "ratio". And the emulation is
the runtime: cut down to its first layer, the model answers most tokens as the emulation does, to float32's rounding
(column "equal": tokens within 1e-6 of the emulation's). Deeper, float32's other order of sums puts some
activation on the other side of a rounding boundary, after which runtime and emulation round independently: column
"apart" then nears the deviation itself, up to 1.4 times it.

All deviations are RMS over RMS of centred logits, the worst of prefill and single steps. Takes two minutes; ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from result import publish
from rich.console import Console
from rich.table import Table

from saap_edge.artifacts import engine_of
from saap_edge.engines.worker import Worker
from saap_edge.evaluation.arithmetic import runtime_arithmetic
from saap_edge.evaluation.parity import logits, relative_error, shipped_model
from saap_edge.exporting.weights import ExportWeights
from saap_edge.exporting.write import write_artifact
from saap_edge.machine.facts import machine_facts
from saap_edge.model.blocks import BLOCK_FORMATS
from saap_edge.model.folder import load_model, save_model
from saap_edge.model.tensors import Codes
from saap_edge.model.tokenizer import load_tokenizer, plain_ids
from saap_edge.recipe import bundled_model, bundled_text

# Artifact, block format the folder is "tuned" in (None: not at all), group.
CASES = (
    ("gguf-f32", None, 32), ("gguf-f16", None, 32), ("gguf-bf16", None, 32), ("gguf-q8_0", None, 32),
    ("gguf-q4_0", None, 32), ("gguf-q4_1", None, 32),
    ("gguf-q8_0", "q8_0", 128), ("gguf-q4_0", "q4_0", 128), ("gguf-q4_1", "q4_1", 128), ("onnx-fp32", None, 32),
    ("onnx-fp16", None, 32),
    ("onnx-int4", None, 32), ("onnx-int4", None, 128), ("onnx-int4", "int4_zp", 32), ("onnx-int4", "int4_zp", 128),
    ("onnx-int8", None, 32), ("onnx-int8", None, 128), ("onnx-int8", "int8_zp", 128),
)  # fmt: skip
EQUAL = 1e-6
console = Console(width=120)


def first_layer(folder: Path, out: Path) -> Path:
    """The model cut down to its first layer."""
    model = load_model(folder)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    out.mkdir()
    save_model(model, folder, out)
    return out


def tune(folder: Path, format_name: str, group: int) -> None:
    """Write the weights rounded to nearest as if they were tuned blocks."""
    weights = ExportWeights(folder)
    names = [name for name, _ in load_model(folder).named_parameters() if name.endswith("_proj.weight")]
    format = BLOCK_FORMATS[format_name]
    Codes.save({name: weights.blocks(name, format, group) for name in names}, folder)


def compare(folder: Path, artifact_format: str, group: int, tokens: list[int], scratch: Path) -> dict[str, Any]:
    """Deviations of an artifact and of its emulation."""
    path = scratch / "artifact"
    write_artifact(folder, path, artifact_format, group)
    model = shipped_model(folder, artifact_format, group)
    exact = logits(model, tokens)
    with runtime_arithmetic(model, ExportWeights(folder), artifact_format, group):
        emulated = logits(model, tokens)
    with Worker(engine_of(artifact_format), path, 1, 2 * len(tokens)) as worker:
        answers = [worker.logits(tokens, mode) for mode in ("prefill", "steps")]
    predicted = relative_error(emulated, exact)
    apart = [
        [relative_error(answer[at : at + 1], emulated[at : at + 1]) for at in range(len(tokens))] for answer in answers
    ]
    return {
        "observed": max(relative_error(answer, exact) for answer in answers), "predicted": predicted,
        "apart": max(relative_error(answer, emulated) for answer in answers),
        "equal": float(np.mean(np.array(apart) < EQUAL)),
    }  # fmt: skip


def measure(model: Path, tokens: list[int]) -> list[dict[str, Any]]:
    rows = []
    for artifact_format, tuned, group in CASES:
        row: dict[str, Any] = {"format": artifact_format, "tuned": tuned, "group": group}
        with tempfile.TemporaryDirectory(prefix="saap-edge-arithmetic-") as name:
            scratch = Path(name)
            whole = Path(shutil.copytree(model, scratch / "whole"))
            for depth, folder in (("whole", whole), ("first_layer", first_layer(whole, scratch / "first"))):
                if tuned:
                    tune(folder, tuned, group)
                (scratch / depth / "out").mkdir(parents=True)
                row[depth] = compare(folder, artifact_format, group, tokens, scratch / depth / "out")
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="deviation from exact arithmetic on the shipped weights")
    names = (
        "artifact",
        "tuned",
        "group",
        "observed",
        "predicted",
        "ratio",
        "apart",
        "layer 1: observed",
        "apart",
        "equal",
    )
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        whole, first = row["whole"], row["first_layer"]
        ratio = f"{whole['observed'] / whole['predicted']:.2f}" if whole["predicted"] else "-"
        equal = f"{first['equal']:.0%}" if first["predicted"] else "-"
        figures = [f"{figure:.1e}" for figure in (whole["apart"], first["observed"], first["apart"])]
        table.add_row(
            row["format"], row["tuned"] or "-", str(row["group"]), f"{whole['observed']:.2e}",
            f"{whole['predicted']:.2e}", ratio, *figures, equal,
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model(), help="a Hugging Face folder")
    parser.add_argument("--text", type=Path, default=bundled_text("test"), help="text whose first tokens are run")
    parser.add_argument("--tokens", type=int, default=48, help="how many, fewer than 64 (default 48)")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()

    text = args.text.read_text(encoding="utf-8")[:2000]
    tokens = plain_ids(load_tokenizer(args.model), text)[: args.tokens]
    with console.status("exporting and comparing"):
        rows = measure(args.model, tokens)
    show(rows)
    result = {
        "benchmark": "arithmetic", "model": args.model.resolve().name, "tokens": len(tokens),
        "machine": machine_facts(), "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
