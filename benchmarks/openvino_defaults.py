"""What OpenVINO's own defaults do to the logits of the bundled model: each alone, and all together.

    python benchmarks/openvino_defaults.py --out benchmarks/results/openvino-defaults.json
    python benchmarks/openvino_defaults.py --show benchmarks/results/openvino-defaults.json --pages docs/openvino.md

The relative RMS of centred logits against torch with the same weights, over 128 tokens of the test text: of a prompt
that is read at once, and of single steps. bfloat16 counts only on a processor that computes in it. A minute; ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from result import fill, publish

from saap_edge.engines.openvino import ExactEngine
from saap_edge.evaluation.parity import logits, relative_error, shipped_model
from saap_edge.exporting.openvino import write_openvino
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.model.tokenizer import load_tokenizer, plain_ids

REFERENCE = Path(__file__).parents[1] / "saap_edge" / "reference"
TOKENS = 128
# The property that is left at its default, while all others are exact.
DEFAULTS: dict[str, dict[str, Any]] = {
    "none: the exact form": {},
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32},
    "KV_CACHE_PRECISION": {"KV_CACHE_PRECISION": "u8"},
    "INFERENCE_PRECISION_HINT": {"INFERENCE_PRECISION_HINT": "bf16"},
    "all three": {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32, "KV_CACHE_PRECISION": "u8", "INFERENCE_PRECISION_HINT": "bf16",
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REFERENCE / "wikitext-llama")
    parser.add_argument("--text", type=Path, default=REFERENCE / "text" / "test.txt")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose table is to be this")
    parser.add_argument("--show", type=Path, help="a result of before: show it, measure nothing")
    args = parser.parse_args()
    if args.show:
        return show(json.loads(args.show.read_text(encoding="utf-8"))["rows"], args.pages)
    tokens = plain_ids(load_tokenizer(args.model), args.text.read_text(encoding="utf-8")[:4096])[:TOKENS]
    rows = []
    for quantisation in ("int4", "int8"):
        expected = logits(shipped_model(args.model, f"openvino-{quantisation}"), tokens)
        with tempfile.TemporaryDirectory() as work:
            write_openvino(args.model, Path(work), quantisation)
            rows += [measured(quantisation, name, Path(work), tokens, expected) for name in DEFAULTS]
    show(rows, args.pages)
    publish(
        {"benchmark": "openvino_defaults", "machine": machine_facts(), "versions": versions(), "rows": rows}, args.out
    )


def measured(quantisation: str, name: str, folder: Path, tokens: list[int], expected: np.ndarray) -> dict[str, Any]:
    class Engine(ExactEngine):
        hints = {**ExactEngine.hints, "EXECUTION_MODE_HINT": "PERFORMANCE", **DEFAULTS[name]}  # noqa: RUF012

    engine = Engine(folder, 1, len(tokens))
    prompt = relative_error(engine.forward(tokens, all_logits=True).copy(), expected)
    engine.reset()
    steps = relative_error(np.concatenate([engine.forward([token]).copy() for token in tokens]), expected)
    return {
        "format": f"openvino-{quantisation}", "default": name, "prompt": float(f"{prompt:.2g}"),
        "steps": float(f"{steps:.2g}"), "arithmetic": engine.describe()["arithmetic"],
    }  # fmt: skip


def show(rows: list[dict[str, Any]], pages: list[Path]) -> None:
    columns = ["format", "left at its default", "prompt", "steps"]
    cells = [[row["format"], row["default"], f"{row['prompt']:.1e}", f"{row['steps']:.1e}"] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]]
    print("\n".join(lines))
    for page in pages:
        fill(page, "openvino defaults", lines)


if __name__ == "__main__":
    main()
